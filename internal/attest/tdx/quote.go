package tdx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"teekms/internal/attest"
)

// MaxQuoteSize is the largest input that [ParseQuote] looks at, in bytes.
// Real quotes have about 5,000.
const MaxQuoteSize = 64 << 10

// The two TD report bodies that a quote can carry (docs/evidence.md#quote).
const (
	// BodyTDX10 is the 584-byte body of TDX 1.0, the only one of a V4 quote.
	BodyTDX10 uint16 = 2
	// BodyTDX15 is the 648-byte body of TDX 1.5: the same fields, then
	// TEE_TCB_SVN_2 and MRSERVICETD.
	BodyTDX15 uint16 = 3
)

// Sizes of the parts of a quote, in bytes (docs/evidence.md#quote).
const (
	headerSize    = 48
	bodySize10    = 584
	bodySize15    = 648
	signatureSize = 64
	publicKeySize = 64
	qeReportSize  = 384
)

// Values that a quote must carry to be one that this package understands.
const (
	attestationKeyP256 = 2
	teeTypeTDX         = 0x81
	certTypePEMChain   = 5
	certTypeQEReport   = 6
)

// Quote is a parsed TDX quote. Its slices alias the input of [ParseQuote],
// which must not be changed afterwards. Nothing in it is verified.
//
//	version 4: header 48 | body 584                          | size 4 | signed data
//	version 5: header 48 | body type 2 | body size 4 | body  | size 4 | signed data
//
//	signed data: signature 64 | attestation key 64 | 6 (2) | size 4 | QE data
//	QE data:     QE report 384 | signature 64 | size 2 | auth data | 5 (2) | size 4 | PEM chain
type Quote struct {
	// Raw is the quote without trailing padding.
	Raw []byte

	version, bodyType uint16
	header, body      []byte
	// signed is what the attestation key signs: header and body.
	signed []byte
	// tail is all after the quote's signature: what is the same in every
	// quote of one quoting enclave.
	tail           []byte
	signature      []byte
	attestationKey []byte
	qeReport       QEReport
	qeSignature    []byte
	authData       []byte
	chain          []byte
}

// ParseQuote reads a V4 or V5 quote over a P-256 attestation key. Zero bytes
// after the quote are padding, as real hosts write it, and are trimmed; any
// other byte after it is an error. Every length is checked against what is
// there and against every length it contains.
func ParseQuote(raw []byte) (*Quote, error) {
	if len(raw) > MaxQuoteSize {
		return nil, fmt.Errorf("%d bytes, more than %d", len(raw), MaxQuoteSize)
	}
	c := &cursor{b: raw}
	q := &Quote{header: c.take(headerSize, "header")}
	if c.err != nil {
		return nil, c.err
	}
	if err := q.readHeader(); err != nil {
		return nil, err
	}
	if err := q.readBody(c); err != nil {
		return nil, err
	}
	q.signed = raw[:c.off]
	if err := q.readSignedData(c); err != nil {
		return nil, err
	}
	q.Raw = raw[:c.off:c.off]
	if len(bytes.TrimLeft(c.rest(), "\x00")) != 0 {
		return nil, errors.New("bytes other than zero padding after the quote")
	}
	return q, nil
}

func (q *Quote) readHeader() error {
	q.version = binary.LittleEndian.Uint16(q.header)
	if q.version != 4 && q.version != 5 {
		return fmt.Errorf("version %d, want 4 or 5", q.version)
	}
	if t := binary.LittleEndian.Uint16(q.header[2:]); t != attestationKeyP256 {
		return fmt.Errorf("attestation key type %d, want %d (ECDSA P-256)", t, attestationKeyP256)
	}
	if t := binary.LittleEndian.Uint32(q.header[4:]); t != teeTypeTDX {
		return fmt.Errorf("TEE type %#x, want %#x (TDX)", t, teeTypeTDX)
	}
	if v := q.QEVendorID(); v != intelQEVendor() {
		return fmt.Errorf("QE vendor %x, want %x (Intel)", v, intelQEVendor())
	}
	return nil
}

// intelQEVendor is the vendor id of Intel's quoting enclaves.
func intelQEVendor() [16]byte {
	return [16]byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}
}

func (q *Quote) readBody(c *cursor) error {
	if q.version == 4 {
		q.bodyType = BodyTDX10
		q.body = c.take(bodySize10, "TD report body")
		return c.err
	}
	q.bodyType = c.uint16("body type")
	size := c.uint32("body size")
	if c.err != nil {
		return c.err
	}
	var want uint32
	switch q.bodyType {
	case BodyTDX10:
		want = bodySize10
	case BodyTDX15:
		want = bodySize15
	default:
		return fmt.Errorf("body type %d, want %d or %d", q.bodyType, BodyTDX10, BodyTDX15)
	}
	if size != want {
		return fmt.Errorf("body of type %d has %d bytes, want %d", q.bodyType, size, want)
	}
	q.body = c.take(int(size), "TD report body")
	return c.err
}

func (q *Quote) readSignedData(c *cursor) error {
	data := c.sized32("signed data")
	q.signature = data.take(signatureSize, "quote signature")
	q.tail = data.rest()
	q.attestationKey = data.take(publicKeySize, "attestation key")
	if t := data.uint16("certification data type"); data.err == nil && t != certTypeQEReport {
		return fmt.Errorf("certification data type %d, want %d (QE report)", t, certTypeQEReport)
	}
	qe := data.sized32("certification data")
	q.qeReport = qe.take(qeReportSize, "QE report")
	q.qeSignature = qe.take(signatureSize, "QE report signature")
	q.authData = qe.take(int(qe.uint16("QE authentication data size")), "QE authentication data")
	if t := qe.uint16("inner certification data type"); qe.err == nil && t != certTypePEMChain {
		return fmt.Errorf("inner certification data type %d, want %d (PCK chain)", t, certTypePEMChain)
	}
	chain := qe.sized32("PCK chain")
	q.chain = chain.rest()
	// Errors of the inner parts are consequences of those of the outer ones.
	for _, err := range [...]error{c.err, data.err, qe.err, chain.err} {
		if err != nil {
			return err
		}
	}
	if n := len(data.rest()); n != 0 {
		return fmt.Errorf("%d bytes after the certification data", n)
	}
	if n := len(qe.rest()); n != 0 {
		return fmt.Errorf("%d bytes after the PCK chain", n)
	}
	return nil
}

// AppendTo appends the encoding of q to b, with every length computed anew
// from the parts. It equals q.Raw.
func (q *Quote) AppendTo(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, q.header...)
	if q.version == 5 {
		b = le.AppendUint16(b, q.bodyType)
		b = le.AppendUint32(b, uint32(len(q.body)))
	}
	b = append(b, q.body...)
	qeData := len(q.qeReport) + len(q.qeSignature) + 2 + len(q.authData) + 2 + 4 + len(q.chain)
	b = le.AppendUint32(b, uint32(len(q.signature)+len(q.attestationKey)+2+4+qeData))
	b = append(b, q.signature...)
	b = append(b, q.attestationKey...)
	b = le.AppendUint16(b, certTypeQEReport)
	b = le.AppendUint32(b, uint32(qeData))
	b = append(b, q.qeReport...)
	b = append(b, q.qeSignature...)
	b = le.AppendUint16(b, uint16(len(q.authData)))
	b = append(b, q.authData...)
	b = le.AppendUint16(b, certTypePEMChain)
	b = le.AppendUint32(b, uint32(len(q.chain)))
	return append(b, q.chain...)
}

// Version is 4 or 5.
func (q *Quote) Version() uint16 { return q.version }

// BodyType is [BodyTDX10] or [BodyTDX15].
func (q *Quote) BodyType() uint16 { return q.bodyType }

// QEVendorID names the maker of the quoting enclave.
func (q *Quote) QEVendorID() [16]byte { return [16]byte(q.header[12:28]) }

// UserData are 20 bytes that the quoting enclave sets: on real machines its
// 16-byte id and four zeros.
func (q *Quote) UserData() [20]byte { return [20]byte(q.header[28:48]) }

// TEETCBSVN are the security version numbers of the TDX module: [0] its SVN,
// [1] its major version, [2] the microcode's SVN.
func (q *Quote) TEETCBSVN() [16]byte { return [16]byte(q.body[0:16]) }

// MRSeam measures the TDX module.
func (q *Quote) MRSeam() attest.Measurement { return q.register(16) }

// MRSignerSeam measures the signer of the TDX module, zero for Intel's.
func (q *Quote) MRSignerSeam() attest.Measurement { return q.register(64) }

// SeamAttributes are the attributes of the TDX module, zero for Intel's.
func (q *Quote) SeamAttributes() [8]byte { return [8]byte(q.body[112:120]) }

// TDAttributes are the attributes of the TD. Bits 0 to 7 put it under the eyes
// of its host, bit 0 (debug) being the one in use.
func (q *Quote) TDAttributes() uint64 { return binary.LittleEndian.Uint64(q.body[120:]) }

// XFAM is the mask of extended processor features the TD may use.
func (q *Quote) XFAM() uint64 { return binary.LittleEndian.Uint64(q.body[128:]) }

// MRTD measures the TD as it was built.
func (q *Quote) MRTD() attest.Measurement { return q.register(136) }

// MRConfigID is set by whoever built the TD.
func (q *Quote) MRConfigID() attest.Measurement { return q.register(184) }

// MROwner is set by whoever built the TD.
func (q *Quote) MROwner() attest.Measurement { return q.register(232) }

// MROwnerConfig is set by whoever built the TD.
func (q *Quote) MROwnerConfig() attest.Measurement { return q.register(280) }

// RTMRs are the four run-time measurement registers.
func (q *Quote) RTMRs() [4]attest.Measurement {
	return [4]attest.Measurement{q.register(328), q.register(376), q.register(424), q.register(472)}
}

// ReportData are the 64 bytes that the TD had quoted.
func (q *Quote) ReportData() [64]byte { return [64]byte(q.body[520:584]) }

// TEETCBSVN2 are the security version numbers of the TDX module that runs now,
// where TEETCBSVN are those at the start of the TD. Zero in a 584-byte body.
func (q *Quote) TEETCBSVN2() [16]byte {
	if q.bodyType != BodyTDX15 {
		return [16]byte{}
	}
	return [16]byte(q.body[584:600])
}

// MRServiceTD measures the service TDs that may act on this TD, such as a
// migration TD. Zero in a 584-byte body.
func (q *Quote) MRServiceTD() attest.Measurement {
	if q.bodyType != BodyTDX15 {
		return attest.Measurement{}
	}
	return q.register(600)
}

// QEReport is the SGX report of the quoting enclave.
func (q *Quote) QEReport() QEReport { return q.qeReport }

// AuthData are the bytes that the quoting enclave binds together with the
// attestation key.
func (q *Quote) AuthData() []byte { return q.authData }

// PCKChain is the PEM of the PCK certificate, its issuer and the root.
func (q *Quote) PCKChain() []byte { return q.chain }

func (q *Quote) register(off int) attest.Measurement {
	return attest.Measurement(q.body[off : off+attest.MeasurementSize])
}

// QEReport is the 384-byte SGX report of a quoting enclave.
type QEReport []byte

// MiscSelect is the MISCSELECT field.
func (r QEReport) MiscSelect() [4]byte { return [4]byte(r[16:20]) }

// Attributes are the enclave's flags (8 bytes) and XFRM (8 bytes).
func (r QEReport) Attributes() [16]byte { return [16]byte(r[48:64]) }

// Debug says that the enclave can be looked into.
func (r QEReport) Debug() bool { return r[48]&0x02 != 0 }

// MREnclave measures the enclave.
func (r QEReport) MREnclave() [32]byte { return [32]byte(r[64:96]) }

// MRSigner measures the key that signed the enclave.
func (r QEReport) MRSigner() [32]byte { return [32]byte(r[128:160]) }

// ISVProdID is the product id that the signer gave the enclave.
func (r QEReport) ISVProdID() uint16 { return binary.LittleEndian.Uint16(r[256:]) }

// ISVSVN is the security version number that the signer gave the enclave.
func (r QEReport) ISVSVN() uint16 { return binary.LittleEndian.Uint16(r[258:]) }

// ReportData are the 64 bytes that bind the attestation key.
func (r QEReport) ReportData() [64]byte { return [64]byte(r[320:384]) }
