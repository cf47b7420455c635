"""This machine's disk: plain blocking code, called on the loop where it is quick, in threads where it is not."""
