package audit

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/keys"
)

// maxCheckpoint is the most bytes of a checkpoint with its signatures.
const maxCheckpoint = 64 << 10

// Identity is whose log it is. Make it with [IdentityOf].
type Identity struct {
	// Origin is the name of the log, in its checkpoints.
	Origin string
	// Key (32 bytes) seals the head in the database.
	Key keys.Secret
	// Signer (32 bytes, the seed of an Ed25519 key) signs checkpoints.
	Signer keys.Secret
	// KeySignature is the root CA key's over the [KeyStatement] of the verifier
	// key.
	KeySignature []byte
}

// IdentityOf is the identity of the log of a KMS: the same at every replica.
func IdentityOf(roots *keys.Roots) (Identity, error) {
	id := Identity{Origin: Origin(sha256.Sum256(roots.CAPublic()))}
	var err error
	if id.Key, err = roots.Own("audit head"); err != nil {
		return Identity{}, err
	}
	if id.Signer, err = roots.Own("audit checkpoint"); err != nil {
		return Identity{}, err
	}
	key, err := id.VerifierKey()
	if err != nil {
		return Identity{}, err
	}
	if id.KeySignature, err = roots.SignOwn(KeyStatement(key)); err != nil {
		return Identity{}, err
	}
	return id, nil
}

// Origin names the log of the KMS whose root CA public key (DER
// SubjectPublicKeyInfo) has this SHA-256.
func Origin(root [sha256.Size]byte) string { return fmt.Sprintf("teekms/audit/%x", root) }

// VerifierKey is the public key of checkpoints, as notes have it.
func (id Identity) VerifierKey() (string, error) {
	if id.Signer.Len() != ed25519.SeedSize {
		return "", fmt.Errorf("the signer has %d bytes, want %d", id.Signer.Len(), ed25519.SeedSize)
	}
	public, ok := ed25519.NewKeyFromSeed(id.Signer.Bytes()).Public().(ed25519.PublicKey)
	if !ok {
		return "", errors.New("the signer is no Ed25519 key")
	}
	return note.NewEd25519VerifierKey(id.Origin, public)
}

// signer makes signatures of notes.
type signer struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

func (id Identity) signer() (signer, error) {
	text, err := id.VerifierKey()
	if err != nil {
		return signer{}, err
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return signer{}, fmt.Errorf("origin %q: %w", id.Origin, err)
	}
	return signer{v, ed25519.NewKeyFromSeed(id.Signer.Bytes())}, nil
}

// KeyStatement is what the root CA key signs to say that checkpoints are signed
// with this key (docs/audit.md#key).
func KeyStatement(verifierKey string) []byte {
	return []byte("teekms audit checkpoint key v1\n" + verifierKey + "\n")
}

// ErrKey says that a verifier key is not that of the KMS.
var ErrKey = errors.New("the key of the audit log is not certified by the root CA key")

// VerifyKey returns the verifier of the checkpoints of the KMS whose root CA
// has this public key. The error is [ErrKey] unless verifierKey names that root
// and signature is the root's.
func VerifyKey(root *ecdsa.PublicKey, spki []byte, verifierKey string, signature []byte) (note.Verifier, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	if want := Origin(sha256.Sum256(spki)); v.Name() != want {
		return nil, fmt.Errorf("%w: it is of %q, not of %q", ErrKey, v.Name(), want)
	}
	digest := sha256.Sum256(KeyStatement(verifierKey))
	if !ecdsa.VerifyASN1(root, digest[:], signature) {
		return nil, fmt.Errorf("%w: the signature does not hold", ErrKey)
	}
	return v, nil
}

// Checkpoint is the head of a log as it is signed.
type Checkpoint struct {
	// Origin names the log.
	Origin string
	// Size is the number of records, Root the hash of their tree.
	Size uint64
	Root tlog.Hash
	// Generation counts how often the log was cleared.
	Generation uint64
	// Time is when it was signed, UTC, in seconds.
	Time time.Time
}

// Text is the checkpoint without signatures, in the format tlog-checkpoint of
// C2SP with two lines of ours after it.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\ngeneration %d\ntime %s\n", c.Origin, c.Size, c.Root, c.Generation, c.Time.UTC().Format(time.RFC3339))
}

var errCheckpoint = errors.New("not a checkpoint of an audit log")

// parseCheckpoint reads the text of a checkpoint in the one way that
// [Checkpoint.Text] writes it only.
func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 6 {
		return Checkpoint{}, fmt.Errorf("%w: %d lines, want 5", errCheckpoint, len(lines)-1)
	}
	c := Checkpoint{Origin: lines[0]}
	generation, ok1 := strings.CutPrefix(lines[3], "generation ")
	at, ok2 := strings.CutPrefix(lines[4], "time ")
	root, err1 := base64.StdEncoding.Strict().DecodeString(lines[2])
	var err2, err3, err4 error
	c.Size, err2 = strconv.ParseUint(lines[1], 10, 64)
	c.Generation, err3 = strconv.ParseUint(generation, 10, 64)
	c.Time, err4 = time.Parse(time.RFC3339, at)
	if err := errors.Join(err1, err2, err3, err4); err != nil || !ok1 || !ok2 || len(root) != tlog.HashSize || c.Size > MaxSize {
		return Checkpoint{}, errCheckpoint
	}
	copy(c.Root[:], root)
	c.Time = c.Time.UTC()
	if c.Text() != text {
		return Checkpoint{}, fmt.Errorf("%w: it is written otherwise", errCheckpoint)
	}
	return c, nil
}

// OpenCheckpoint reads a signed checkpoint of the log that v verifies. Other
// signatures, of witnesses say, may stand beside it.
func OpenCheckpoint(signed string, v note.Verifier) (Checkpoint, error) {
	if len(signed) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("%w: more than %d bytes", errCheckpoint, maxCheckpoint)
	}
	n, err := note.Open([]byte(signed), note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("opening checkpoint: %w", err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, fmt.Errorf("%w: it is of %q, not of %q", errCheckpoint, c.Origin, v.Name())
	}
	return c, nil
}
