package keys

// DeriveDH gives tests the derivation below the key hierarchy, for which there
// is a published vector.
func DeriveDH(r *Roots, info ...string) (scalar []byte, dh Secret, err error) {
	key, err := deriveP256(r.ca, info...)
	if err != nil {
		return nil, Secret{}, err
	}
	if scalar, err = key.Bytes(); err != nil {
		return nil, Secret{}, err
	}
	dh, err = deriveDH(r.ca, info...)
	return scalar, dh, err
}

// Sign gives tests the signature over any message.
func Sign(r *Roots, prefix string, appID []byte, parts ...[]byte) ([]byte, error) {
	return r.sign(prefix, appID, parts...)
}
