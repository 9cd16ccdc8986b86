package redisdb

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"

	"teekms/internal/storage"
)

const (
	headerMagic = "teekms redis v1\n"
	saltSize    = 16
	wrapSize    = chacha20poly1305.NonceSizeX + keySize + chacha20poly1305.Overhead
	// headerSize is the length of every header.
	headerSize = len(headerMagic) + 3*4 + saltSize + sha256.Size + wrapSize + sha256.Size

	infoBind = "teekms/redis/v1/header"
	infoKEK  = "teekms/redis/v1/kek"
)

// cost is what Argon2id takes.
type cost struct{ time, memoryKiB, threads uint32 }

// newCost is what new headers ask for, RFC 9106 §4's second choice.
func newCost() cost { return cost{time: 3, memoryKiB: 64 << 10, threads: 4} }

// check refuses a cost that protects nothing, and one that would occupy us.
func (c cost) check() error {
	if c.time < 2 || c.time > 16 || c.memoryKiB < 19<<10 || c.memoryKiB > 512<<10 || c.threads < 1 || c.threads > 16 {
		return fmt.Errorf("%w: the key derivation of the header is out of bounds", storage.ErrIntegrity)
	}
	return nil
}

// header is the first thing read of a database:
//
//	magic (16) | time (4) | memory in KiB (4) | threads (4) | salt (16)
//	| root (32): whose database it is, SHA-256 of the root public key
//	| wrap (72): nonce (24), XChaCha20-Poly1305(KEK, root key of the database)
//	| tag (32): HMAC-SHA256 of all before and the name of the key
//
// KEK = HKDF-SHA256(Argon2id(master password, salt | SHA-256(label)) | Key, salt),
// where Key is derived from the KMS's root keys: the password alone opens
// nothing. The tag is under a key derived from Key alone, so that a changed
// header is refused before Argon2id is run, and told from a wrong password.
type header struct {
	cost cost
	salt [saltSize]byte
	root [sha256.Size]byte
	wrap [wrapSize]byte
	tag  [sha256.Size]byte
}

// signed are the bytes that the tag is of, without the key's name.
func (h *header) signed() []byte { return append(h.wrapped(), h.wrap[:]...) }

// wrapped are the bytes that the wrap authenticates.
func (h *header) wrapped() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, headerMagic...)
	b = binary.BigEndian.AppendUint32(b, h.cost.time)
	b = binary.BigEndian.AppendUint32(b, h.cost.memoryKiB)
	b = binary.BigEndian.AppendUint32(b, h.cost.threads)
	b = append(b, h.salt[:]...)
	return append(b, h.root[:]...)
}

func (h *header) marshal() []byte { return append(h.signed(), h.tag[:]...) }

// parseHeader checks the shape of a header and the bounds of its cost.
func parseHeader(b []byte) (*header, error) {
	if len(b) != headerSize || !bytes.HasPrefix(b, []byte(headerMagic)) {
		return nil, fmt.Errorf("%w: its header is none of this program", storage.ErrWrongKey)
	}
	c := cursor{rest: b[len(headerMagic):]}
	h := &header{cost: cost{time: c.uint32(), memoryKiB: c.uint32(), threads: c.uint32()}}
	copy(h.salt[:], c.bytes(saltSize))
	copy(h.root[:], c.bytes(sha256.Size))
	copy(h.wrap[:], c.bytes(wrapSize))
	copy(h.tag[:], c.bytes(sha256.Size))
	if err := c.done(); err != nil {
		return nil, fmt.Errorf("%w: %w", storage.ErrIntegrity, err)
	}
	return h, h.cost.check()
}

// tagOf authenticates a header with the KMS's own key.
func (h *header) tagOf(c storage.Config, name string) ([]byte, error) {
	bind, err := hkdf.Key(sha256.New, c.Key.Bytes(), nil, infoBind, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the key of the header: %w", err)
	}
	mac := hmac.New(sha256.New, bind)
	mac.Write(h.signed())
	mac.Write([]byte(name))
	return mac.Sum(nil), nil
}

// kek derives the key that wraps the root key of the database.
func (h *header) kek(c storage.Config) ([]byte, error) {
	label := sha256.Sum256([]byte(c.Label))
	stretched := argon2.IDKey(c.MasterPassword.Bytes(), append(h.salt[:], label[:]...),
		h.cost.time, h.cost.memoryKiB, uint8(h.cost.threads), keySize)
	kek, err := hkdf.Key(sha256.New, append(stretched, c.Key.Bytes()...), h.salt[:], infoKEK, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the key of the header: %w", err)
	}
	return kek, nil
}

// newHeader makes a header with a new random root key of the database.
func newHeader(c storage.Config, name string) (h *header, root []byte, err error) {
	h = &header{cost: newCost(), root: c.Root}
	_, _ = rand.Read(h.salt[:]) // crypto/rand never fails.
	kek, err := h.kek(c)
	if err != nil {
		return nil, nil, err
	}
	aead, err := chacha20poly1305.NewX(kek)
	if err != nil {
		return nil, nil, fmt.Errorf("wrapping the root key of the database: %w", err)
	}
	nonce := h.wrap[:chacha20poly1305.NonceSizeX]
	_, _ = rand.Read(nonce)
	root = make([]byte, keySize)
	_, _ = rand.Read(root)
	aead.Seal(nonce, nonce, root, h.wrapped())
	tag, err := h.tagOf(c, name)
	if err != nil {
		return nil, nil, err
	}
	copy(h.tag[:], tag)
	return h, root, nil
}

// openHeader returns the root key of the database.
func openHeader(b []byte, c storage.Config, name string) ([]byte, error) {
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if h.root != c.Root {
		return nil, &storage.OtherRootError{Database: h.root, KMS: c.Root}
	}
	tag, err := h.tagOf(c, name)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(tag, h.tag[:]) {
		// The root key is ours by name: either the other keys are not, or somebody
		// wrote here. Nothing tells which.
		return nil, fmt.Errorf("%w: the header does not authenticate (%w)", storage.ErrWrongKey, storage.ErrIntegrity)
	}
	kek, err := h.kek(c)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(kek)
	if err != nil {
		return nil, fmt.Errorf("unwrapping the root key of the database: %w", err)
	}
	nonce, sealed := h.wrap[:chacha20poly1305.NonceSizeX], h.wrap[chacha20poly1305.NonceSizeX:]
	root, err := aead.Open(nil, nonce, sealed, h.wrapped())
	if err != nil {
		return nil, fmt.Errorf("%w: the master password is another", storage.ErrWrongKey)
	}
	return root, nil
}

// unlock returns the root key of the database, made new where there is none.
func (db *DB) unlock(ctx context.Context, c storage.Config) ([]byte, error) {
	// Twice, because another process may make the database while we look.
	for range 2 {
		stored, err := db.readHeader(ctx, db.key)
		if err != nil {
			return nil, err
		}
		if stored != nil {
			db.header = stored
			return openHeader(stored, c, db.key)
		}
		if err := db.checkOtherLabels(ctx, c); err != nil {
			return nil, err
		}
		if root, err := db.create(ctx, c); root != nil || err != nil {
			return root, err
		}
	}
	return nil, fmt.Errorf("%w: the header comes and goes", storage.ErrIntegrity)
}

// readHeader returns the bytes of the header of a database, nil where there is
// none.
func (db *DB) readHeader(ctx context.Context, key string) ([]byte, error) {
	var stored []byte
	err := db.ask(ctx, "reading the header of", func(ctx context.Context) error {
		b, err := db.client.HGet(ctx, key, headerField).Bytes()
		if errors.Is(err, redis.Nil) {
			return nil
		}
		stored = b
		return err
	})
	return stored, err
}

// create writes a header and an empty head where nothing is, and returns the root
// key of the database: nil where another process was faster.
func (db *DB) create(ctx context.Context, c storage.Config) ([]byte, error) {
	h, root, err := newHeader(c, db.key)
	if err != nil {
		return nil, err
	}
	b, err := newBox(root, c.Label)
	if err != nil {
		return nil, err
	}
	db.header = h.marshal()
	first := &head{epoch: newEpoch()}
	value := b.seal(first.marshal(), headField)
	var outcome int
	err = db.ask(ctx, "creating", func(ctx context.Context) error {
		var err error
		outcome, err = createScript().Run(ctx, db.client, []string{db.key}, db.header, value).Int()
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case outcome == createDone:
		return root, nil
	case outcome == createExists:
		return nil, nil //nolint:nilnil // The caller reads the other's.
	default:
		return nil, fmt.Errorf("%w: there are records of this label but the header is missing", storage.ErrIntegrity)
	}
}

const (
	// scanCount is how many names the server looks through for one answer.
	scanCount = 10_000
	// maxForeign bounds the names that are looked through for databases.
	maxForeign = 1_000_000
)

// checkOtherLabels refuses to begin a second database for one KMS beside one that
// holds records, which is what a mistyped label would do: the log would fork and
// the rules be gone. KMSs of other root keys are no concern of ours.
func (db *DB) checkOtherLabels(ctx context.Context, c storage.Config) error {
	var cursor uint64
	for seen := 0; ; {
		var names []string
		err := db.ask(ctx, "looking through", func(ctx context.Context) error {
			var err error
			names, cursor, err = db.client.ScanType(ctx, cursor, keyPattern, scanCount, "hash").Result()
			return err
		})
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := db.checkOtherLabel(ctx, c, name); err != nil {
				return err
			}
		}
		if seen += scanCount; cursor == 0 {
			return nil
		}
		if seen >= maxForeign {
			db.warnings = append(db.warnings, "Redis holds very many keys of others: it was not ruled out that this KMS has a database there under another label")
			return nil
		}
	}
}

// checkOtherLabel looks at one database.
func (db *DB) checkOtherLabel(ctx context.Context, c storage.Config, name string) error {
	stored, err := db.readHeader(ctx, name)
	if err != nil || name == db.key {
		return err
	}
	if !isBoundTo(stored, c.Root) {
		return nil
	}
	var fields int64
	err = db.ask(ctx, "looking through", func(ctx context.Context) error {
		var err error
		fields, err = db.client.HLen(ctx, name).Result()
		return err
	})
	// Header and head are all that an unused database has.
	if err == nil && fields > 2 {
		err = fmt.Errorf("%w: this KMS has records there under another label", storage.ErrWrongKey)
	}
	return err
}

// isBoundTo says whether bytes are a header of a KMS's database.
func isBoundTo(stored []byte, root [sha256.Size]byte) bool {
	h, err := parseHeader(stored)
	return err == nil && h.root == root
}
