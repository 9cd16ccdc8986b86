package simtd

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"teekms/internal/attest"
)

// A TDX quote, little-endian (docs/evidence.md#quote):
//
//	version 4:  header 48 | TD report 584                       | size 4 | signed data
//	version 5:  header 48 | type 2 | size 4 | TD report 584/648 | size 4 | signed data
//
//	signed data: signature 64 | attestation key 64 | type 2 = 6 | size 4 | certification
//	certification: QE report 384 | signature 64 | size 2 | QE auth | type 2 = 5 | size 4 | PEM chain
const (
	headerSize   = 48
	bodySize10   = 584
	bodySize15   = 648
	qeReportSize = 384
)

// The body types of a version 5 quote.
const (
	BodyTDX10 uint16 = 2
	BodyTDX15 uint16 = 3
)

// Shape is the form of a quote. The zero value is a version 4 quote as a real
// platform makes it; the Edit fields are for tests of what a verifier refuses.
type Shape struct {
	// Version is 4 (also 0) or 5.
	Version uint16
	// BodyType is [BodyTDX10] or [BodyTDX15] (also 0) in version 5.
	BodyType uint16
	// EditSigned, when not nil, may change header and body before they are
	// signed by the attestation key.
	EditSigned func(headerAndBody []byte)
	// EditQEReport, when not nil, may change the 384 bytes of the QE report
	// before the PCK key signs them.
	EditQEReport func(report []byte)
	// EditChain, when not nil, returns another PEM chain.
	EditChain func(chain []byte) []byte
}

func (s Shape) check() error {
	switch s.Version {
	case 0, 4:
		if s.BodyType != 0 {
			return errors.New("a version 4 quote has no body type")
		}
	case 5:
		if s.BodyType != 0 && s.BodyType != BodyTDX10 && s.BodyType != BodyTDX15 {
			return fmt.Errorf("quote body type is %d, want 2 or 3", s.BodyType)
		}
	default:
		return fmt.Errorf("quote version is %d, want 4 or 5", s.Version)
	}
	return nil
}

// Quote makes a quote over any 64 bytes, in any shape. It stands for the host's
// quoting service: an agent that fakes one asks here, everything else goes
// through [TD.Attest].
func (t *TD) Quote(reportData [64]byte, s Shape) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("quoting in software trust domain: %w", err)
	}
	return t.quote(reportData, t.RTMR(), s)
}

func (t *TD) quote(reportData [64]byte, rtmr [4]attest.Measurement, s Shape) ([]byte, error) {
	q := t.headerAndBody(reportData, rtmr, s)
	if s.EditSigned != nil {
		s.EditSigned(q)
	}
	signature, err := sign(t.pki.attestation, q)
	if err != nil {
		return nil, fmt.Errorf("quoting in software trust domain: %w", err)
	}
	qe := t.qe
	if s.EditQEReport != nil || s.EditChain != nil {
		if qe, err = t.signQE(s.EditQEReport, s.EditChain); err != nil {
			return nil, fmt.Errorf("quoting in software trust domain: %w", err)
		}
	}
	q = binary.LittleEndian.AppendUint32(q, uint32(len(signature)+len(qe)))
	q = append(q, signature[:]...)
	return append(q, qe...), nil
}

// headerAndBody lays out what the attestation key signs.
func (t *TD) headerAndBody(reportData [64]byte, rtmr [4]attest.Measurement, s Shape) []byte {
	version, body := uint16(4), bodySize10
	if s.Version == 5 {
		version = 5
		if s.BodyType != BodyTDX10 {
			body = bodySize15
		}
	}
	q := make([]byte, 0, 8192)
	q = binary.LittleEndian.AppendUint16(q, version)
	q = binary.LittleEndian.AppendUint16(q, 2)    // ECDSA over P-256
	q = binary.LittleEndian.AppendUint32(q, 0x81) // TDX
	q = append(q, 0, 0, 0, 0)                     // PCE and QE SVN, zero in real quotes
	q = append(q, qeVendorID()...)
	q = append(append(q, t.pki.pck.cert.SubjectKeyId[:16]...), 0, 0, 0, 0) // user data: the QE's id
	if version == 5 {
		bodyType := BodyTDX15
		if body == bodySize10 {
			bodyType = BodyTDX10
		}
		q = binary.LittleEndian.AppendUint16(q, bodyType)
		q = binary.LittleEndian.AppendUint32(q, uint32(body))
	}
	q = t.appendReport(q, reportData, rtmr)
	if body == bodySize15 {
		q = append(q, t.m.TEETCBSVN[:]...) // TEE_TCB_SVN_2
		q = append(q, make([]byte, 48)...) // MRSERVICETD
	}
	return q
}

// appendReport lays out the 584 bytes of a TD report of TDX 1.0.
func (t *TD) appendReport(q []byte, reportData [64]byte, rtmr [4]attest.Measurement) []byte {
	q = append(q, t.m.TEETCBSVN[:]...)
	q = append(q, t.m.MRSeam[:]...)
	q = append(q, make([]byte, 48+8)...) // MRSIGNERSEAM of Intel's module, SEAMATTRIBUTES
	q = binary.LittleEndian.AppendUint64(q, t.m.Attributes)
	q = binary.LittleEndian.AppendUint64(q, t.m.XFAM)
	for _, m := range []*attest.Measurement{&t.m.MRTD, &t.m.MRConfigID, &t.m.MROwner, &t.m.MROwnerConfig, &rtmr[0], &rtmr[1], &rtmr[2], &rtmr[3]} {
		q = append(q, m[:]...)
	}
	return append(q, reportData[:]...)
}

// signedQE is the tail of every quote: attestation key and certification data.
type signedQE []byte

// signQE makes the quoting enclave's report on the attestation key and has the
// PCK key sign it. It is done once: a real QE keeps its key for long, too.
func (t *TD) signQE(editReport func([]byte), editChain func([]byte) []byte) (signedQE, error) {
	point, err := t.pki.attestation.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding attestation key: %w", err)
	}
	key := point[1:] // X and Y without the format byte
	auth := make([]byte, 32)
	for i := range auth {
		auth[i] = byte(i) // as most real machines have it
	}
	report := qeReport(sha256.Sum256(append(append([]byte{}, key...), auth...)))
	if editReport != nil {
		editReport(report)
	}
	signature, err := sign(t.pki.pck.key, report)
	if err != nil {
		return nil, err
	}
	chain := t.pki.chain()
	if editChain != nil {
		chain = editChain(chain)
	}
	q := append([]byte{}, key...)
	q = binary.LittleEndian.AppendUint16(q, 6)
	q = binary.LittleEndian.AppendUint32(q, uint32(qeReportSize+64+2+len(auth)+6+len(chain)))
	q = append(append(q, report...), signature[:]...)
	q = append(binary.LittleEndian.AppendUint16(q, uint16(len(auth))), auth...)
	q = binary.LittleEndian.AppendUint16(q, 5)
	q = binary.LittleEndian.AppendUint32(q, uint32(len(chain)))
	return append(q, chain...), nil
}

// The quoting enclave's identity, in its report and in the collateral.
const (
	qeMRSigner   = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
	qeISVProdID  = 2
	qeISVSVN     = 4
	qeAttributes = 0x15 // INIT, MODE64BIT, PROVISION_KEY
)

func qeVendorID() []byte {
	return []byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}
}

// qeReport lays out an SGX report body (docs/evidence.md#qe-report).
func qeReport(binding [32]byte) []byte {
	r := make([]byte, qeReportSize)
	for i := range 16 {
		r[i] = sgxComponentSVN // CPUSVN
	}
	r[0x30] = qeAttributes
	r[0x38] = 0xe7 // XFRM
	enclave := sha256.Sum256([]byte("software-td/qe"))
	copy(r[0x40:], enclave[:])
	// A constant: it always decodes.
	_, _ = hex.Decode(r[0x80:0xa0], []byte(qeMRSigner))
	binary.LittleEndian.PutUint16(r[0x100:], qeISVProdID)
	binary.LittleEndian.PutUint16(r[0x102:], qeISVSVN)
	copy(r[0x140:], binding[:])
	return r
}

// sign returns r and s over SHA-256 of data, 32 bytes each, as quotes and
// collateral want it.
func sign(key *ecdsa.PrivateKey, data []byte) ([64]byte, error) {
	var out [64]byte
	digest := sha256.Sum256(data)
	der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return out, fmt.Errorf("signing: %w", err)
	}
	var (
		r, s  big.Int
		inner cryptobyte.String
	)
	input := cryptobyte.String(der)
	if !input.ReadASN1(&inner, cbasn1.SEQUENCE) || !inner.ReadASN1Integer(&r) || !inner.ReadASN1Integer(&s) {
		return out, errors.New("signing: signature is not a sequence of two integers")
	}
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}
