package kms_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/crypto/sha3"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

// This file derives every key once more from docs/wire.md#derivation, with
// nothing but hashes and big integers: no curve, no HKDF, no ASN.1 and no code
// that the product uses.

// curve is a short Weierstrass curve y² = x³ + ax + b and a table of multiples
// of its base point: table[i][d-1] is d·256^i·G.
type curve struct {
	p, n, a *big.Int
	table   [32][255]point
}

// point is affine; a nil x is the point at infinity.
type point struct{ x, y *big.Int }

func bigHex(text string) *big.Int {
	n, ok := new(big.Int).SetString(text, 16)
	if !ok {
		panic("not hexadecimal: " + text)
	}
	return n
}

func newCurve(p, n, a, x, y string) *curve {
	c := &curve{p: bigHex(p), n: bigHex(n), a: bigHex(a)}
	base := point{bigHex(x), bigHex(y)}
	for i := range c.table {
		sum := base
		for d := range c.table[i] {
			c.table[i][d] = sum
			sum = c.add(sum, base)
		}
		base = sum // 256 times what it was
	}
	return c
}

func p256() *curve {
	return newCurve("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff",
		"ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
		"ffffffff00000001000000000000000000000000fffffffffffffffffffffffc",
		"6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
		"4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")
}

func secp256k1() *curve {
	return newCurve("fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f",
		"fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", "0",
		"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
		"483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8")
}

// add is the schoolbook addition.
func (c *curve) add(p, q point) point {
	if p.x == nil {
		return q
	}
	if q.x == nil {
		return p
	}
	slope := new(big.Int)
	if p.x.Cmp(q.x) == 0 {
		if p.y.Cmp(q.y) != 0 {
			return point{}
		}
		slope.Mul(p.x, p.x)
		slope.Mul(slope, big.NewInt(3))
		slope.Add(slope, c.a)
		slope.Mul(slope, new(big.Int).ModInverse(new(big.Int).Lsh(p.y, 1), c.p))
	} else {
		dx := new(big.Int).Sub(q.x, p.x)
		slope.Sub(q.y, p.y)
		slope.Mul(slope, new(big.Int).ModInverse(dx.Mod(dx, c.p), c.p))
	}
	slope.Mod(slope, c.p)
	x := new(big.Int).Mul(slope, slope)
	x.Sub(x, p.x).Sub(x, q.x).Mod(x, c.p)
	y := new(big.Int).Sub(p.x, x)
	y.Mul(y, slope).Sub(y, p.y).Mod(y, c.p)
	return point{x, y}
}

// mul multiplies the base point.
func (c *curve) mul(k *big.Int) point {
	var sum point
	scalar := bytes32(k)
	for i := range c.table {
		if d := scalar[31-i]; d != 0 {
			sum = c.add(sum, c.table[i][d-1])
		}
	}
	return sum
}

func bytes32(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }

func compressed(p point) []byte {
	return append([]byte{2 + byte(p.y.Bit(0))}, bytes32(p.x)...)
}

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// kdf is one block of HKDF (RFC 5869) with the salt of the wire format.
func kdf(ikm []byte, context ...[]byte) []byte {
	return mac(mac([]byte("RATLS"), ikm), append(context, []byte{1})...)
}

// dh hashes the DER of a derived P-256 key, written out.
func (c *curve) dh(parent []byte, context ...[]byte) []byte {
	scalar := kdf(parent, context...)
	q := c.mul(new(big.Int).SetBytes(scalar))
	der := []byte{
		0x30, 0x81, 0x87, 2, 1, 0, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1,
		6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 4, 0x6d, 0x30, 0x6b, 2, 1, 1, 4, 0x20,
	}
	der = append(der, scalar...)
	der = append(der, 0xa1, 0x44, 3, 0x42, 0, 4)
	der = append(append(der, bytes32(q.x)...), bytes32(q.y)...)
	sum := sha256.Sum256(der)
	return sum[:]
}

// x25519 multiplies the point 9 (RFC 7748 §5).
func x25519(secret []byte) []byte {
	k := bytes.Clone(secret)
	k[0], k[31] = k[0]&248, k[31]&127|64
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	mod := func(n *big.Int) *big.Int { return n.Mod(n, p) }
	mul := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Mul(a, b)) }
	add := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Add(a, b)) }
	sub := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Sub(a, b)) }
	x1, a24 := big.NewInt(9), big.NewInt(121665)
	x2, z2, x3, z3 := big.NewInt(1), new(big.Int), big.NewInt(9), big.NewInt(1)
	for i := 254; i >= 0; i-- {
		bit := k[i/8] >> (i % 8) & 1
		if bit == 1 {
			x2, x3, z2, z3 = x3, x2, z3, z2
		}
		a, b, c, d := add(x2, z2), sub(x2, z2), add(x3, z3), sub(x3, z3)
		aa, bb, da, cb := mul(a, a), mul(b, b), mul(d, a), mul(c, b)
		e, s, m := sub(aa, bb), add(da, cb), sub(da, cb)
		x3, z3 = mul(s, s), mul(x1, mul(m, m))
		x2, z2 = mul(aa, bb), mul(e, add(aa, mul(a24, e)))
		if bit == 1 {
			x2, x3, z2, z3 = x3, x2, z3, z2
		}
	}
	out := bytes32(mul(x2, new(big.Int).ModInverse(z2, p)))
	for i := range 16 { // little-endian on the wire
		out[i], out[31-i] = out[31-i], out[i]
	}
	return out
}

// sign is ECDSA with the nonce of RFC 6979 §3.2, low s, and the recovery id.
func (c *curve) sign(key []byte, prefix string, parts ...[]byte) []byte {
	h := sha3.NewLegacyKeccak256()
	h.Write([]byte(prefix + ":"))
	for _, p := range parts {
		h.Write(p)
	}
	digest := h.Sum(nil)
	z := new(big.Int).Mod(new(big.Int).SetBytes(digest), c.n)
	v, k := bytes.Repeat([]byte{1}, 32), make([]byte, 32)
	k = mac(k, v, []byte{0}, key, bytes32(z))
	v = mac(k, v)
	k = mac(k, v, []byte{1}, key, bytes32(z))
	v = mac(k, v)
	for {
		v = mac(k, v)
		nonce := new(big.Int).SetBytes(v)
		if nonce.Sign() > 0 && nonce.Cmp(c.n) < 0 {
			q := c.mul(nonce)
			r := new(big.Int).Mod(q.x, c.n)
			s := new(big.Int).Mul(r, new(big.Int).SetBytes(key))
			s.Add(s, z).Mul(s, new(big.Int).ModInverse(nonce, c.n)).Mod(s, c.n)
			recovery := byte(q.y.Bit(0))
			if q.x.Cmp(c.n) >= 0 {
				recovery |= 2
			}
			if s.Cmp(new(big.Int).Rsh(c.n, 1)) > 0 {
				s.Sub(c.n, s)
				recovery ^= 1
			}
			return append(append(bytes32(r), bytes32(s)...), recovery)
		}
		k = mac(k, v, []byte{0})
		v = mac(k, v)
	}
}

// identity is an application under some root keys.
type identity struct{ ca, k256, appID, instanceID []byte }

// derived is everything that follows from an identity.
type derived struct {
	disk, env, envPublic, envSignature, envSignatureV1, k256, k256Public, k256Signature, appCA []byte
}

type curves struct{ p256, secp256k1 *curve }

func (c curves) derive(id identity, timestamp uint64) derived {
	var d derived
	d.disk = c.p256.dh(id.ca, id.appID, id.instanceID, []byte("app-disk-crypt-key"))
	d.env = c.p256.dh(id.ca, id.appID, []byte("env-encrypt-key"))
	d.envPublic = x25519(d.env)
	d.envSignature = c.secp256k1.sign(id.k256, "dstack-env-encrypt-pubkey", id.appID, d.envPublic)
	d.envSignatureV1 = c.secp256k1.sign(id.k256, "dstack-env-encrypt-pubkey", id.appID, binary.BigEndian.AppendUint64(nil, timestamp), d.envPublic)
	d.k256 = kdf(id.k256, id.appID, []byte("app-key"))
	d.k256Public = compressed(c.secp256k1.mul(new(big.Int).SetBytes(d.k256)))
	d.k256Signature = c.secp256k1.sign(id.k256, "dstack-kms-issued", id.appID, d.k256Public)
	q := c.p256.mul(new(big.Int).SetBytes(kdf(id.ca, id.appID, []byte("app-ca"))))
	d.appCA = append(append([]byte{4}, bytes32(q.x)...), bytes32(q.y)...)
	return d
}

// source draws identities; the seed is in the test's output.
type source struct{ *rand.Rand }

func (s source) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(s.UintN(256))
	}
	return b
}

func newSource(t *testing.T) source {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return source{rand.New(rand.NewPCG(seed, 1))}
}

// TestDerivationIsBitExact compares the keys of 1,000 random identities.
func TestDerivationIsBitExact(t *testing.T) {
	s, c := newSource(t), curves{p256(), secp256k1()}
	const perRoot, timestamp = 50, 1_700_000_000
	for range 1000 / perRoot {
		roots, err := keys.NewRoots()
		if err != nil {
			t.Fatal(err)
		}
		caKey, err := keys.ParseKey(roots.CAPEM().Bytes())
		if err != nil {
			t.Fatal(err)
		}
		ca, err := caKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for range perRoot {
			id := identity{ca: ca, k256: roots.K256Raw().Bytes(), appID: s.bytes(20), instanceID: s.bytes(20 * s.IntN(2))}
			got, err := product(roots, id, timestamp)
			if err != nil {
				t.Fatal(err)
			}
			if want := c.derive(id, timestamp); !same(got, want) {
				t.Fatalf("app %x, instance %x: keys = %x, want %x", id.appID, id.instanceID, got, want)
			}
		}
	}
}

func same(a, b derived) bool {
	return bytes.Equal(a.disk, b.disk) && bytes.Equal(a.env, b.env) && bytes.Equal(a.envPublic, b.envPublic) &&
		bytes.Equal(a.envSignature, b.envSignature) && bytes.Equal(a.envSignatureV1, b.envSignatureV1) &&
		bytes.Equal(a.k256, b.k256) && bytes.Equal(a.k256Public, b.k256Public) &&
		bytes.Equal(a.k256Signature, b.k256Signature) && bytes.Equal(a.appCA, b.appCA)
}

// product derives with the code that is tested.
func product(roots *keys.Roots, id identity, timestamp uint64) (derived, error) {
	var d derived
	disk, err := roots.AppDisk(id.appID, id.instanceID)
	if err != nil {
		return d, err
	}
	env, err := roots.Env(id.appID)
	if err != nil {
		return d, err
	}
	k256, err := roots.AppK256(id.appID)
	if err != nil {
		return d, err
	}
	ca, err := roots.AppCA(id.appID)
	if err != nil {
		return d, err
	}
	d = derived{
		disk: disk.Bytes(), env: env.Private.Bytes(), envPublic: env.Public,
		k256: k256.Private.Bytes(), k256Public: k256.Public, k256Signature: k256.Signature,
	}
	if d.appCA, err = ca.PublicKey.Bytes(); err != nil {
		return d, err
	}
	if d.envSignature, err = roots.SignEnvPublic(id.appID, env.Public); err != nil {
		return d, err
	}
	d.envSignatureV1, err = roots.SignEnvPublicAt(id.appID, env.Public, timestamp)
	return d, err
}

// TestReleasedKeysAreBitExact compares what attested workloads of random
// identities are given over the wire.
func TestReleasedKeysAreBitExact(t *testing.T) {
	s, c := newSource(t), curves{p256(), secp256k1()}
	w := newWorld(t)
	for range 25 {
		id := identity{ca: unhex(t, vectorCA), k256: unhex(t, vectorK256), appID: s.bytes(20), instanceID: s.bytes(20)}
		td := w.workload(t, simtd.Measurements{AppID: id.appID, InstanceID: id.instanceID})
		client := w.client(t, certificate(t, td, ratls.Gen8))
		got, end := invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, client, w.url, "prpc json", "GetAppKey", &kmsv1.GetAppKeyRequest{})
		end.expect(t, "prpc json", outcome{})
		env, end := invoke[kmsv1.GetAppEnvEncryptPubKeyRequest, kmsv1.GetAppEnvEncryptPubKeyResponse](t, client, w.url, "prpc json",
			"GetAppEnvEncryptPubKey", &kmsv1.GetAppEnvEncryptPubKeyRequest{AppId: id.appID})
		end.expect(t, "prpc json", outcome{})
		a := newApplicant(t, td)
		signed, end := signCert(t, w, "prpc json", a.sign(t, 2, a.csr(t)))
		end.expect(t, "prpc json", outcome{})
		_, ca := chain(t, w, signed)
		want := c.derive(id, env.GetTimestamp())
		spki := ca.RawSubjectPublicKeyInfo
		if !same(want, derived{
			disk: got.GetDiskCryptKey(), env: got.GetEnvCryptKey(), k256: got.GetK256Key(), k256Signature: got.GetK256Signature(),
			envPublic: env.GetPublicKey(), envSignature: env.GetSignature(), envSignatureV1: env.GetSignatureV1(),
			k256Public: want.k256Public, appCA: spki[len(spki)-65:],
		}) {
			t.Fatalf("app %x, instance %x: other keys than %x", id.appID, id.instanceID, want)
		}
	}
}

// TestIndependentDerivation holds the second implementation itself to a known
// answer that is not ours.
func TestIndependentDerivation(t *testing.T) {
	got := p256().dh(unhex(t, vectorCA), []byte("context one"), []byte("context two"))
	if want := unhex(t, "663afd58820be8ad645f9c035e93199d114ab16f738db62393bc1d7d623e8813"); !bytes.Equal(got, want) {
		t.Errorf("dh = %x, want %x", got, want)
	}
}
