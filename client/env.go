package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	kmsv1 "teekms/gen/kms/v1"
)

// How old and how far ahead the time in a signature may be.
const (
	maxSignatureAge  = 5 * time.Minute
	maxSignatureSkew = time.Minute
)

// EnvKey is the public key to which the environment of an application is
// encrypted, and who vouches for it.
type EnvKey struct {
	// PublicKey is an X25519 public key (32 bytes).
	PublicKey []byte
	// Signature and SignatureV1 (65 bytes each) are the root secp256k1 key's,
	// without and with the time. Older KMSs give no SignatureV1.
	Signature, SignatureV1 []byte
	// SignedAt is the time in SignatureV1, zero without one.
	SignedAt time.Time
	// K256Root is the compressed root secp256k1 key (33 bytes) that made both.
	K256Root []byte
}

// EnvPublicKey gets the public key of an application (its id has 20 bytes) and
// checks both signatures: they must be by one key, by Config.K256Root where that
// is given, and the time in the second must be of these minutes. It needs no
// Evidence of the caller.
func (c *Client) EnvPublicKey(ctx context.Context, appID []byte) (*EnvKey, error) {
	var answer kmsv1.GetAppEnvEncryptPubKeyResponse
	if err := c.call(ctx, "GetAppEnvEncryptPubKey", &kmsv1.GetAppEnvEncryptPubKeyRequest{AppId: appID}, &answer); err != nil {
		return nil, err
	}
	k := &EnvKey{PublicKey: answer.GetPublicKey(), Signature: answer.GetSignature(), SignatureV1: answer.GetSignatureV1()}
	if err := c.checkEnvKey(k, appID, answer.GetTimestamp()); err != nil {
		return nil, fmt.Errorf("GetAppEnvEncryptPubKey: the answer does not hold: %w", err)
	}
	return k, nil
}

func (c *Client) checkEnvKey(k *EnvKey, appID []byte, timestamp uint64) (err error) {
	if len(k.PublicKey) != keySize {
		return fmt.Errorf("public key of %d bytes, want %d", len(k.PublicKey), keySize)
	}
	if k.K256Root, err = signer(k.Signature, prefixEnvKey, appID, k.PublicKey); err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	if err := c.checkSigner("signature", k.K256Root); err != nil {
		return err
	}
	if len(k.SignatureV1) == 0 {
		return nil // an older KMS
	}
	second, err := signer(k.SignatureV1, prefixEnvKey, appID, binary.BigEndian.AppendUint64(nil, timestamp), k.PublicKey)
	if err != nil {
		return fmt.Errorf("signature_v1: %w", err)
	}
	if !bytes.Equal(second, k.K256Root) {
		return errors.New("signature_v1 is not by the key of signature")
	}
	if timestamp > 1<<40 {
		return fmt.Errorf("timestamp %d is no time", timestamp)
	}
	k.SignedAt = time.Unix(int64(timestamp), 0).UTC()
	if age := c.cfg.Now().Sub(k.SignedAt); age > maxSignatureAge || age < -maxSignatureSkew {
		return fmt.Errorf("signature_v1 is of %s, which is not now", k.SignedAt.Format(time.RFC3339))
	}
	return nil
}
