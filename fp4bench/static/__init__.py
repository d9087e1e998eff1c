"""The static model: how long a kernel would take on a GPU that need not be here. A prediction."""
