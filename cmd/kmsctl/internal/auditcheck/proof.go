package auditcheck

import (
	"bytes"
	"encoding/json"

	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/audit"
)

// MaxProof is the most bytes of a proof that [ParseProof] reads.
const MaxProof = 4 << 20

// Proof shows that one record is in the tree of a signed checkpoint. It needs
// nothing else but the root CA certificate.
type Proof struct {
	// Seq is the place of the record.
	Seq uint64
	// Body is the encoded record, Path the hashes of RFC 6962 section 2.1.1.
	Body []byte
	Path []tlog.Hash
	// Head has the checkpoint.
	Head Head
}

type proofJSON struct {
	Format       string   `json:"format"`
	Seq          uint64   `json:"seq"`
	Body         []byte   `json:"body"`
	Proof        [][]byte `json:"proof"`
	Checkpoint   string   `json:"checkpoint"`
	Key          string   `json:"key"`
	KeySignature []byte   `json:"key_signature"`
}

// Marshal writes a proof as JSON.
func (p *Proof) Marshal() ([]byte, error) {
	out := proofJSON{
		Format: proofFormat, Seq: p.Seq, Body: p.Body, Proof: [][]byte{},
		Checkpoint: p.Head.Checkpoint, Key: p.Head.Key, KeySignature: p.Head.KeySignature,
	}
	for _, h := range p.Path {
		out.Proof = append(out.Proof, h[:])
	}
	text, err := json.MarshalIndent(out, "", "  ")
	return append(text, '\n'), err
}

// ParseProof reads a proof.
func ParseProof(text []byte) (*Proof, error) {
	var in proofJSON
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if len(text) > MaxProof || d.Decode(&in) != nil || d.More() || in.Format != proofFormat {
		return nil, findingf(Malformed, "the file is no proof from an audit log")
	}
	p := &Proof{Seq: in.Seq, Body: in.Body, Head: Head{Checkpoint: in.Checkpoint, Key: in.Key, KeySignature: in.KeySignature}}
	var err error
	if p.Path, err = Hashes(in.Proof); err != nil {
		return nil, err
	}
	return p, nil
}

// Hashes reads the hashes of a proof.
func Hashes(raw [][]byte) ([]tlog.Hash, error) {
	if len(raw) > 64 {
		return nil, findingf(Malformed, "a proof of %d hashes", len(raw))
	}
	hashes := make([]tlog.Hash, len(raw))
	for i, h := range raw {
		if len(h) != tlog.HashSize {
			return nil, findingf(Malformed, "a hash of %d bytes", len(h))
		}
		copy(hashes[i][:], h)
	}
	return hashes, nil
}

// Verify returns the record, and the checkpoint over it.
func (p *Proof) Verify(o Options) (*audit.Record, audit.Checkpoint, error) {
	c, _, err := openHead(p.Head, o)
	if err != nil {
		return nil, audit.Checkpoint{}, err
	}
	r, err := audit.Parse(p.Body)
	if err != nil {
		return nil, audit.Checkpoint{}, findingf(Malformed, "the record: %v", err)
	}
	if r.Seq != p.Seq {
		return nil, audit.Checkpoint{}, findingf(Malformed, "the record is %d, not %d", r.Seq, p.Seq)
	}
	if r.Seq >= c.Size || tlog.CheckRecord(p.Path, int64(c.Size), c.Root, int64(r.Seq), audit.Hash(p.Body)) != nil {
		return nil, audit.Checkpoint{}, findingf(Rewritten, "record %d is not in the tree of the checkpoint over %d records", r.Seq, c.Size)
	}
	return r, c, nil
}
