"""The process above the workers: it starts and replaces them, loads policies, keeps pairs, answers.

`launch` puts its parts together; `workers` keeps the processes alive and hears what they say.
"""
