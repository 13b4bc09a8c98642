"""The methods compared: sequences of concepts learned in order, examined after every task, reported with intervals."""
