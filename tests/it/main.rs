mod hsm;
