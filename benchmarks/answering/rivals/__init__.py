"""Other ways to an answer: those that begin with every target, and those that prepare for all of them.

A solver takes one target and runs until it has an error, or until a number of seconds is over. Somebody who prepares
gets the seconds that the family's pretraining and stations took, and then answers every parameter.
"""
