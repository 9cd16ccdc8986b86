package tpm

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

const (
	bank = "sha256:"

	nameSize    = 2 + 32 // algorithm and digest
	hintSize    = 8
	publicSize  = 78
	maxPrivate  = 512 // a sealed key takes about 130
	maxArg      = 1024
	policyStart = 10 // of the digest in the public area
	uniqueStart = 46
	digestSize  = 32
)

// object is a sealed key as it is stored: nothing of it is secret.
type object struct {
	pcrs selection
	// hints are the first bytes of the PCRs' values when it was sealed. They
	// only say which of them changed.
	hints   [][hintSize]byte
	srk     []byte // name
	public  []byte // TPMT_PUBLIC
	private []byte // contents of TPM2B_PRIVATE
}

// template is the public area of every key that is sealed here. Only the policy
// authorizes its use, it cannot be moved, and failures are not counted.
func template(policy, unique []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique}),
	}
}

// policy is the digest that authorizes the use of the object. Its public area
// has been checked.
func (o object) policy() []byte { return o.public[policyStart : policyStart+digestSize] }

// checkPublic accepts nothing but the template with some policy: an object that
// opens in another way besides is not one of ours.
func checkPublic(b []byte) error {
	if len(b) != publicSize {
		return fmt.Errorf("public area of %d bytes, want %d", len(b), publicSize)
	}
	want := tpm2.Marshal(template(b[policyStart:policyStart+digestSize], b[uniqueStart:]))
	if !bytes.Equal(b, want) {
		return errors.New("the object is not a key that only a policy over PCRs opens")
	}
	return nil
}

func (o object) args() []string {
	hints := make([]byte, 0, len(o.hints)*hintSize)
	for _, h := range o.hints {
		hints = append(hints, h[:]...)
	}
	e := base64.RawStdEncoding
	return []string{
		o.pcrs.word(), e.EncodeToString(hints), e.EncodeToString(o.srk),
		e.EncodeToString(o.public), e.EncodeToString(o.private),
	}
}

// parseArgs accepts only what object.args writes.
func parseArgs(args []string) (object, error) {
	if len(args) != 5 {
		return object{}, fmt.Errorf("%d arguments, want 5", len(args))
	}
	pcrs, err := parseSelection(args[0])
	if err != nil {
		return object{}, err
	}
	o := object{pcrs: pcrs}
	var hints []byte
	for i, f := range []struct {
		name     string
		dst      *[]byte
		min, max int
	}{
		{"PCR values", &hints, hintSize * len(pcrs), hintSize * len(pcrs)},
		{"SRK name", &o.srk, nameSize, nameSize},
		{"public area", &o.public, publicSize, publicSize},
		{"private area", &o.private, 1, maxPrivate},
	} {
		b, err := decodeArg(args[i+1])
		if err != nil {
			return object{}, fmt.Errorf("%s: %w", f.name, err)
		}
		if len(b) < f.min || len(b) > f.max {
			return object{}, fmt.Errorf("%s: %d bytes, want %d to %d", f.name, len(b), f.min, f.max)
		}
		*f.dst = b
	}
	for range pcrs {
		o.hints = append(o.hints, [hintSize]byte(hints))
		hints = hints[hintSize:]
	}
	if err := checkPublic(o.public); err != nil {
		return object{}, err
	}
	return o, nil
}

func decodeArg(s string) ([]byte, error) {
	if len(s) > maxArg {
		return nil, fmt.Errorf("%d characters, want at most %d", len(s), maxArg)
	}
	// The decoder skips line ends, which no argument has.
	b, err := base64.RawStdEncoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("want base64 without padding")
	}
	return b, nil
}

// word is the selection as it is stored, "sha256:7+11+14".
func (s selection) word() string {
	words := make([]string, len(s))
	for i, p := range s {
		words[i] = strconv.FormatUint(uint64(p), 10)
	}
	return bank + strings.Join(words, "+")
}

func parseSelection(word string) (selection, error) {
	if len(word) > maxArg {
		return nil, fmt.Errorf("PCRs: %d characters, want at most %d", len(word), maxArg)
	}
	list, ok := strings.CutPrefix(word, bank)
	if !ok {
		return nil, errors.New("PCRs: want the bank sha256")
	}
	var pcrs []int
	for p := range strings.SplitSeq(list, "+") {
		n, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return nil, fmt.Errorf("PCR %q: want a number", p)
		}
		pcrs = append(pcrs, int(n))
	}
	s, err := newSelection(pcrs)
	if err != nil {
		return nil, err
	}
	if s.word() != word {
		return nil, errors.New("PCRs: want numbers in ascending order")
	}
	return s, nil
}

// String is the selection in words: "PCRs 7, 11, 14 of SHA-256".
func (s selection) String() string {
	words := make([]string, len(s))
	for i, p := range s {
		words[i] = strconv.FormatUint(uint64(p), 10)
	}
	noun := "PCRs "
	if len(s) == 1 {
		noun = "PCR "
	}
	return noun + strings.Join(words, ", ") + " of SHA-256"
}
