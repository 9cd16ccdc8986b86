package guestagenttest

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/ethereum/go-ethereum/crypto"
)

// rootSeed is what RootKey is made of.
const rootSeed = "root of the KMS behind the agents of tests"

// RootKey is the secp256k1 root key, a scalar of 32 bytes, of the one KMS behind
// all these agents: from it follow the keys they answer to GetKey.
func RootKey() []byte {
	root := sha256.Sum256([]byte(rootSeed))
	return root[:]
}

// getKey derives as the agent does: the key of the application by its KMS, below
// that one for the path. Purpose and algorithm are not in it; the purpose is in
// what the application's key signs (docs/wire.md#guest-agent).
func (a agent) getKey(r request) (any, error) {
	switch r.Algorithm {
	case "", "secp256k1", "k256":
	default:
		return nil, fmt.Errorf("Unsupported algorithm") //nolint:staticcheck // the agent's own words
	}
	appID := a.td.Measurements().AppID
	root := RootKey()
	app, err := derive(root, string(appID)+"app-key")
	if err != nil {
		return nil, err
	}
	key, err := derive(app, r.Path)
	if err != nil {
		return nil, err
	}
	keyPublic, err := public(key)
	if err != nil {
		return nil, err
	}
	appPublic, err := public(app)
	if err != nil {
		return nil, err
	}
	byApp, err := sign(app, []byte(r.Purpose+":"+hex.EncodeToString(keyPublic)))
	if err != nil {
		return nil, err
	}
	byKMS, err := sign(root, []byte("dstack-kms-issued:"), appID, appPublic)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"key":             hex.EncodeToString(key),
		"signature_chain": []string{hex.EncodeToString(byApp), hex.EncodeToString(byKMS)},
	}, nil
}

// derive is KDF of docs/wire.md#derivation with 32 bytes of output.
func derive(key []byte, context string) ([]byte, error) {
	b, err := hkdf.Key(sha256.New, key, []byte("RATLS"), context, 32)
	if err != nil {
		return nil, fmt.Errorf("deriving: %w", err)
	}
	return b, nil
}

func public(scalar []byte) ([]byte, error) {
	key, err := crypto.ToECDSA(scalar)
	if err != nil {
		return nil, fmt.Errorf("reading scalar: %w", err)
	}
	return crypto.CompressPubkey(&key.PublicKey), nil
}

func sign(scalar []byte, parts ...[]byte) ([]byte, error) {
	key, err := crypto.ToECDSA(scalar)
	if err != nil {
		return nil, fmt.Errorf("reading scalar: %w", err)
	}
	b, err := crypto.Sign(crypto.Keccak256(parts...), key)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return b, nil
}
