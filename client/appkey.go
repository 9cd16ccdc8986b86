package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/crypto"

	kmsv1 "teekms/gen/kms/v1"
)

// AppKeys are the keys of an application. The same application gets the same
// keys from every replica of a KMS.
type AppKeys struct {
	// CACert is the PEM of the root CA certificate.
	CACert []byte
	// DiskKey (32 bytes) is the key of the instance's disk.
	DiskKey Secret
	// EnvKey (32 bytes) is the X25519 secret of the encrypted environment.
	EnvKey Secret
	// K256Key (32 bytes) is the application's secp256k1 secret.
	K256Key Secret
	// K256Signature (65 bytes) is the root secp256k1 key's, over the app id and
	// the public half of K256Key (docs/wire.md#derivation).
	K256Signature []byte
	// K256Root is the compressed root secp256k1 key (33 bytes) that made it.
	K256Root []byte
	// GatewayAppID is the app id of the gateway, "any" when any will do.
	GatewayAppID string
	// OSImageHash is the OS image that was authorized.
	OSImageHash []byte
}

// AppKey gets the keys of the application that this workload's Evidence says it
// is. vmConfig is the JSON text that describes the virtual machine; where it is
// empty, that of the Evidence counts. The error is a [*DeniedError] when the
// application may not have its keys.
func (c *Client) AppKey(ctx context.Context, vmConfig string) (*AppKeys, error) {
	if vmConfig == "" {
		vmConfig = c.vmConfig
	}
	var answer kmsv1.GetAppKeyResponse
	if err := c.call(ctx, "GetAppKey", &kmsv1.GetAppKeyRequest{ApiVersion: 1, VmConfig: vmConfig}, &answer); err != nil {
		return nil, err
	}
	k := &AppKeys{
		CACert:  []byte(answer.GetCaCert()),
		DiskKey: newSecret(answer.GetDiskCryptKey()), EnvKey: newSecret(answer.GetEnvCryptKey()), K256Key: newSecret(answer.GetK256Key()),
		K256Signature: answer.GetK256Signature(), GatewayAppID: answer.GetGatewayAppId(), OSImageHash: answer.GetOsImageHash(),
	}
	if k.GatewayAppID == "" {
		k.GatewayAppID = answer.GetTproxyAppId() // its older name
	}
	if err := c.checkKeys(k); err != nil {
		return nil, fmt.Errorf("GetAppKey: the answer does not hold: %w", err)
	}
	return k, nil
}

// checkKeys refuses what no honest KMS answers.
func (c *Client) checkKeys(k *AppKeys) error {
	for _, f := range []struct {
		name string
		key  Secret
	}{{"disk key", k.DiskKey}, {"environment key", k.EnvKey}, {"secp256k1 key", k.K256Key}} {
		if f.key.Len() != keySize {
			return fmt.Errorf("%s of %d bytes, want %d", f.name, f.key.Len(), keySize)
		}
	}
	if err := c.checkRoot(k.CACert); err != nil {
		return err
	}
	key, err := crypto.ToECDSA(k.K256Key.Bytes())
	if err != nil {
		return errors.New("the secp256k1 key is none")
	}
	k.K256Root, err = signer(k.K256Signature, prefixAppKey, c.identity.AppID, crypto.CompressPubkey(&key.PublicKey))
	if err != nil {
		return fmt.Errorf("k256_signature: %w", err)
	}
	return c.checkSigner("k256_signature", k.K256Root)
}

// The sizes of symmetric keys and of signatures, in bytes.
const (
	keySize       = 32
	signatureSize = 65
)

// What the root secp256k1 key signs begins with one of these
// (docs/wire.md#derivation).
const (
	prefixAppKey = "dstack-kms-issued"
	prefixEnvKey = "dstack-env-encrypt-pubkey"
)

// signer recovers the compressed public key that made a signature over prefix,
// app id and message.
func signer(signature []byte, prefix string, appID []byte, message ...[]byte) ([]byte, error) {
	if len(signature) != signatureSize {
		return nil, fmt.Errorf("%d bytes, want %d", len(signature), signatureSize)
	}
	digest := crypto.Keccak256(append([][]byte{[]byte(prefix + ":"), appID}, message...)...)
	key, err := crypto.SigToPub(digest, signature)
	if err != nil {
		return nil, errors.New("not a signature")
	}
	return crypto.CompressPubkey(key), nil
}

// checkSigner compares a recovered key with the one that is pinned.
func (c *Client) checkSigner(name string, got []byte) error {
	if want := c.cfg.K256Root; len(want) > 0 && !bytes.Equal(got, want) {
		return fmt.Errorf("%s is by the key %x, want %x", name, got, want)
	}
	return nil
}
