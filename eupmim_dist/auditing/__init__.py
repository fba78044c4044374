"""What a careful person looks at in a store before believing a figure: `eupmim-dist audit`.

`audit.py` goes through the store once, block by block, and shows each block to the groups of findings, one module each.
"""
