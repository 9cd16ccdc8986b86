package client

import (
	"context"

	kmsv1 "teekms/gen/kms/v1"
)

// Meta is what a KMS says of itself to anyone.
type Meta struct {
	// CACert is the PEM of the root CA certificate.
	CACert []byte
	// K256Root is the compressed root secp256k1 key (33 bytes).
	K256Root []byte
	// Bootstrap is the record of the bootstrap, nil where there is none.
	Bootstrap *Bootstrap
	// AllowAnyUpgrade and IsDev say that everything is allowed (development).
	AllowAnyUpgrade, IsDev bool
	// GatewayAppID, KMSContract, ChainID and AppImplementation are facts of
	// whoever authorizes, empty and 0 where it tells none.
	GatewayAppID, KMSContract string
	ChainID                   uint64
	AppImplementation         string
	// TrustRoot is the SHA-256 of the root that the KMS verifies Evidence
	// against, nil where it does not say.
	TrustRoot []byte
	// InsecureSettings are the switches in force that weaken it.
	InsecureSettings []string
}

// Bootstrap is the record of a bootstrap (docs/kmsctl.md#records).
type Bootstrap struct {
	// CAPublicKey is DER SubjectPublicKeyInfo, K256PublicKey a compressed point.
	CAPublicKey, K256PublicKey []byte
	// Quote binds both; EventLog is the JSON text that replays to its RTMRs.
	Quote, EventLog []byte
}

// Meta asks the KMS about itself. What it says of its roots is compared with
// what Config pins.
func (c *Client) Meta(ctx context.Context) (*Meta, error) {
	var answer kmsv1.GetMetaResponse
	if err := c.call(ctx, "GetMeta", &kmsv1.GetMetaRequest{}, &answer); err != nil {
		return nil, err
	}
	m := &Meta{
		CACert: []byte(answer.GetCaCert()), K256Root: answer.GetK256Pubkey(),
		AllowAnyUpgrade: answer.GetAllowAnyUpgrade(), IsDev: answer.GetIsDev(),
		GatewayAppID: answer.GetGatewayAppId(), KMSContract: answer.GetKmsContractAddress(), ChainID: answer.GetChainId(),
		AppImplementation: answer.GetAppAuthImplementation(),
		TrustRoot:         answer.GetTrustRootSha256(), InsecureSettings: answer.GetInsecureSettings(),
	}
	if b := answer.GetBootstrapInfo(); b != nil {
		m.Bootstrap = &Bootstrap{CAPublicKey: b.GetCaPubkey(), K256PublicKey: b.GetK256Pubkey(), Quote: b.GetQuote(), EventLog: b.GetEventlog()}
	}
	if err := c.checkRoot(m.CACert); err != nil {
		return nil, err
	}
	if err := c.checkSigner("k256_pubkey", m.K256Root); err != nil {
		return nil, err
	}
	return m, nil
}
