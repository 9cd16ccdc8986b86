package pkcs12

import (
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds of the work that a file may ask for.
const (
	// MaxIterations bounds one iteration count. Tools write 1 to 600,000.
	MaxIterations = 2_000_000
	// maxWork bounds their sum over the file.
	maxWork = 3 * MaxIterations
	// maxSalt bounds a salt, in bytes.
	maxSalt = 1024
	// maxDepth bounds how deep bags nest; in files from tools none does.
	maxDepth = 4
	// maxBags bounds the bags of a file.
	maxBags = 64
)

// Object identifiers: RFC 7292 §4 and appendices, RFC 8018 appendices.
//
//nolint:gochecknoglobals // constants in all but name
var (
	oidData      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidEncrypted = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 6}

	oidKey          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 1}
	oidShroudedKey  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 2}
	oidSafeContents = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 6}

	oid3DES       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 3}
	oidRC2128     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 5}
	oidRC240      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 6}
	oidPBES2      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBMAC1     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 14}
	oidPBKDF2     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidHMACSHA1   = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 7}
	oidHMACSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidHMACSHA512 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 11}
	oidAES128     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	oidAES192     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}
	oidAES256     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	oidScrypt     = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
)

const reasonDER = "it is not a PKCS#12 file in DER"

// CheckShape tells whether data has the form of a PKCS#12 file that can be
// opened with bounded work. No key is derived, so nothing that is encrypted is
// looked at. Errors are of type [*Error].
func CheckShape(data []byte) error { return (&walker{}).check(data) }

// walker goes through a file and adds up the work that it asks for.
type walker struct {
	// password opens what is encrypted; nil leaves it closed.
	password      *string
	work, bags    int
	authenticated bool
	// keys open the private keys, once it is known how much work all is.
	keys []func() error
}

func (w *walker) check(data []byte) error {
	switch {
	case len(data) == 0:
		return refused("it is empty")
	case len(data) > MaxSize:
		return refused(fmt.Sprintf("it is larger than %d bytes", MaxSize))
	}
	if err := w.file(data); err != nil {
		return err
	}
	for _, open := range w.keys {
		if err := open(); err != nil {
			return err
		}
	}
	return nil
}

// file reads a PFX:
//
//	SEQUENCE { version INTEGER, authSafe ContentInfo, macData MacData OPTIONAL }
func (w *walker) file(data []byte) error {
	input := cryptobyte.String(data)
	var pfx, content cryptobyte.String
	var version int
	var id asn1.ObjectIdentifier
	if !input.ReadASN1(&pfx, cbasn1.SEQUENCE) || !pfx.ReadASN1Integer(&version) {
		return refused(reasonDER)
	}
	if !input.Empty() {
		return refused("something follows the PKCS#12 file")
	}
	if version != 3 {
		return refused("it is not of version 3")
	}
	if !readContentInfo(&pfx, &id, &content) {
		return refused(reasonDER)
	}
	if !id.Equal(oidData) {
		return refused("it is protected by a public key: export it under a password")
	}
	var safe, contents cryptobyte.String
	if !content.ReadASN1(&safe, cbasn1.OCTET_STRING) || !content.Empty() ||
		!safe.ReadASN1(&contents, cbasn1.SEQUENCE) || !safe.Empty() {
		return refused(reasonDER)
	}
	if !pfx.Empty() {
		if err := w.mac(&pfx); err != nil {
			return err
		}
	}
	parts := 0
	for ; !contents.Empty(); parts++ {
		if err := w.safe(&contents); err != nil {
			return err
		}
	}
	if parts < 1 || parts > 2 {
		return refused("it does not have one or two parts, as files of one key have")
	}
	return nil
}

// readContentInfo reads SEQUENCE { contentType OID, content [0] ANY }.
func readContentInfo(from *cryptobyte.String, id *asn1.ObjectIdentifier, content *cryptobyte.String) bool {
	var info cryptobyte.String
	return from.ReadASN1(&info, cbasn1.SEQUENCE) && info.ReadASN1ObjectIdentifier(id) &&
		info.ReadASN1(content, cbasn1.Tag(0).ContextSpecific().Constructed()) && info.Empty()
}

// mac reads SEQUENCE { mac DigestInfo, macSalt OCTET STRING, iterations INTEGER
// DEFAULT 1 }, which ends the file.
func (w *walker) mac(pfx *cryptobyte.String) error {
	var mac, digest, value, salt cryptobyte.String
	if !pfx.ReadASN1(&mac, cbasn1.SEQUENCE) || !pfx.Empty() ||
		!mac.ReadASN1(&digest, cbasn1.SEQUENCE) {
		return refused(reasonDER)
	}
	algorithm, ok := readAlgorithm(&digest)
	if !ok || !digest.ReadASN1(&value, cbasn1.OCTET_STRING) || !digest.Empty() || !mac.ReadASN1(&salt, cbasn1.OCTET_STRING) {
		return refused(reasonDER)
	}
	w.authenticated = true
	var err error
	switch {
	case algorithm.id.Equal(oidPBMAC1):
		// RFC 9579 §3: what counts is in the parameters.
		if !mac.SkipOptionalASN1(cbasn1.INTEGER) {
			return refused(reasonDER)
		}
		_, err = w.schemes(algorithm)
	case mac.Empty():
		err = w.count(1, len(salt)) // RFC 7292 §4: DEFAULT 1
	default:
		_, err = w.iterations(&mac, len(salt))
	}
	if err == nil && !mac.Empty() {
		err = refused(reasonDER)
	}
	return err
}

func tooMuch() error {
	return refused(fmt.Sprintf("its iteration count is not from 1 to %d", MaxIterations))
}

// count adds one derivation.
func (w *walker) count(iterations, salt int) error {
	switch {
	case iterations < 1 || iterations > MaxIterations:
		return tooMuch()
	case salt > maxSalt:
		return refused(fmt.Sprintf("it has a salt of more than %d bytes", maxSalt))
	}
	w.work += iterations
	if w.work > maxWork {
		return refused(fmt.Sprintf("its iteration counts add up to more than %d", maxWork))
	}
	return nil
}

// algorithm is an AlgorithmIdentifier.
type algorithm struct {
	id     asn1.ObjectIdentifier
	params cryptobyte.String
}

func readAlgorithm(from *cryptobyte.String) (algorithm, bool) {
	var a algorithm
	var seq cryptobyte.String
	ok := from.ReadASN1(&seq, cbasn1.SEQUENCE) && seq.ReadASN1ObjectIdentifier(&a.id)
	a.params = seq
	return a, ok
}

// safe reads one ContentInfo of the authenticated safe.
func (w *walker) safe(contents *cryptobyte.String) error {
	var id asn1.ObjectIdentifier
	var content, inner cryptobyte.String
	if !readContentInfo(contents, &id, &content) {
		return refused(reasonDER)
	}
	switch {
	case id.Equal(oidData):
		if !content.ReadASN1(&inner, cbasn1.OCTET_STRING) || !content.Empty() {
			return refused(reasonDER)
		}
		return w.safeContents(&inner, maxDepth)
	case id.Equal(oidEncrypted):
		// SEQUENCE { version INTEGER, SEQUENCE { contentType OID, algorithm, [0] content } }
		var version int
		var info, sealed cryptobyte.String
		if !content.ReadASN1(&inner, cbasn1.SEQUENCE) || !content.Empty() || !inner.ReadASN1Integer(&version) ||
			!inner.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1ObjectIdentifier(&id) {
			return refused(reasonDER)
		}
		a, ok := readAlgorithm(&info)
		if !ok || !info.ReadASN1(&sealed, cbasn1.Tag(0).ContextSpecific()) || !info.Empty() || !inner.Empty() {
			return refused(reasonDER)
		}
		how, err := w.encryption(a)
		if err != nil || w.password == nil {
			return err
		}
		return w.inside(how, sealed)
	}
	return refused("it is protected by a public key: export it under a password")
}

// inside looks at what is encrypted. Noise stands for a wrong password.
func (w *walker) inside(how *sealed, ciphertext []byte) error {
	contents, err := w.decrypt(how, ciphertext)
	if err != nil {
		return err
	}
	return w.safeContents(&contents, maxDepth)
}

// decrypt opens what holds one sequence.
func (w *walker) decrypt(how *sealed, ciphertext []byte) (cryptobyte.String, error) {
	plain, ok := how.open(ciphertext, *w.password, bmp(*w.password))
	if !ok && *w.password == "" {
		// Some tools write no password as no bytes at all, not even a zero.
		plain, ok = how.open(ciphertext, "", nil)
	}
	if !ok {
		return nil, wrongPassword(nil)
	}
	return plain, nil
}

// safeContents reads SEQUENCE OF SafeBag, SEQUENCE { bagId OID, value [0] ANY,
// attributes SET OPTIONAL }.
func (w *walker) safeContents(from *cryptobyte.String, depth int) error {
	var bags cryptobyte.String
	if depth == 0 {
		return refused("its bags nest too deep")
	}
	if !from.ReadASN1(&bags, cbasn1.SEQUENCE) || !from.Empty() {
		return refused(reasonDER)
	}
	for !bags.Empty() {
		var bag, value cryptobyte.String
		var id asn1.ObjectIdentifier
		if !bags.ReadASN1(&bag, cbasn1.SEQUENCE) || !bag.ReadASN1ObjectIdentifier(&id) ||
			!bag.ReadASN1(&value, cbasn1.Tag(0).ContextSpecific().Constructed()) {
			return refused(reasonDER)
		}
		if w.bags++; w.bags > maxBags {
			return refused(fmt.Sprintf("it has more than %d bags", maxBags))
		}
		switch {
		case id.Equal(oidSafeContents):
			if err := w.safeContents(&value, depth-1); err != nil {
				return err
			}
		case id.Equal(oidKey):
			if err := checkPKCS8(value); err != nil {
				return err
			}
		case id.Equal(oidShroudedKey):
			if err := w.shroudedKey(value); err != nil {
				return err
			}
		}
	}
	return nil
}

// encryption reads the parameters of an encryption by password.
func (w *walker) encryption(a algorithm) (*sealed, error) {
	switch {
	case a.id.Equal(oid3DES), a.id.Equal(oidRC2128), a.id.Equal(oidRC240):
		var params, salt cryptobyte.String
		if !a.params.ReadASN1(&params, cbasn1.SEQUENCE) || !a.params.Empty() || !params.ReadASN1(&salt, cbasn1.OCTET_STRING) {
			return nil, refused(reasonDER)
		}
		n, err := w.iterations(&params, len(salt))
		if err == nil && !params.Empty() {
			err = refused(reasonDER)
		}
		return &sealed{id: a.id, salt: salt, iterations: n}, err
	case a.id.Equal(oidPBES2):
		how, err := w.schemes(a)
		if err != nil {
			return nil, err
		}
		for _, known := range []asn1.ObjectIdentifier{oidAES128, oidAES192, oidAES256} {
			if how.scheme.id.Equal(known) {
				return how, nil
			}
		}
		a = how.scheme
	}
	return nil, refused("it is encrypted with " + nameOf(a.id) + ", which is not supported: export it with PBES2 and AES in CBC mode")
}

// maxShownOID bounds how much of an identifier is shown, in bytes.
const maxShownOID = 64

func nameOf(id asn1.ObjectIdentifier) string {
	text := id.String()
	return text[:min(len(text), maxShownOID)]
}

// iterations reads an iteration count.
func (w *walker) iterations(params *cryptobyte.String, salt int) (int, error) {
	var raw cryptobyte.String
	var n int
	rest := *params
	if !params.ReadASN1(&raw, cbasn1.INTEGER) {
		return 0, refused(reasonDER)
	}
	if !rest.ReadASN1Integer(&n) { // more than 64 bits, or not minimal
		return 0, tooMuch()
	}
	return n, w.count(n, salt)
}

// schemes reads the parameters of PBES2 and PBMAC1: SEQUENCE { kdf, scheme },
// with PBKDF2 as the former: SEQUENCE { salt OCTET STRING, iterations INTEGER,
// keyLength INTEGER OPTIONAL, prf DEFAULT hmacWithSHA1 }.
func (w *walker) schemes(a algorithm) (*sealed, error) {
	var params, kdfParams, salt cryptobyte.String
	if !a.params.ReadASN1(&params, cbasn1.SEQUENCE) || !a.params.Empty() {
		return nil, refused(reasonDER)
	}
	kdf, ok := readAlgorithm(&params)
	if !ok {
		return nil, refused(reasonDER)
	}
	switch {
	case kdf.id.Equal(oidScrypt):
		return nil, refused("its key is derived with scrypt, which is not supported: export it with PBKDF2")
	case !kdf.id.Equal(oidPBKDF2):
		return nil, refused("its key is derived with " + nameOf(kdf.id) + ", which is not supported: export it with PBKDF2")
	}
	how := &sealed{id: a.id}
	if how.scheme, ok = readAlgorithm(&params); !ok || !params.Empty() {
		return nil, refused(reasonDER)
	}
	if !kdf.params.ReadASN1(&kdfParams, cbasn1.SEQUENCE) || !kdf.params.Empty() || !kdfParams.ReadASN1(&salt, cbasn1.OCTET_STRING) {
		return nil, refused(reasonDER)
	}
	var err error
	if how.iterations, err = w.iterations(&kdfParams, len(salt)); err != nil {
		return nil, err
	}
	how.salt = salt
	if !kdfParams.SkipOptionalASN1(cbasn1.INTEGER) { // the key's length: AES says it too
		return nil, refused(reasonDER)
	}
	if !kdfParams.Empty() {
		prf, ok := readAlgorithm(&kdfParams)
		if !ok || !kdfParams.Empty() {
			return nil, refused(reasonDER)
		}
		how.prf = prf.id
	}
	if _, known := prfOf(how.prf); !known {
		return nil, refused("its key is derived with the function " + nameOf(how.prf) + ", which is not supported: export it with hmacWithSHA256")
	}
	return how, nil
}
