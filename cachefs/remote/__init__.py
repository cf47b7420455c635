"""Object stores: plain blocking code behind one contract."""
