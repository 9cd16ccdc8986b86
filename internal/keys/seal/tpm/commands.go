package tpm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"teekms/internal/keys"
)

// nonceSize is that of the sessions' nonces, in bytes.
const nonceSize = 16

// tpm is an open TPM in one Make or Find, and what is to be flushed at its end.
type tpm struct {
	conn
	handles []tpm2.TPMHandle
}

// release flushes what was made, also when the caller has gone. What cannot be
// flushed goes with the connection, or to make room for the next one.
func (t *tpm) release() {
	t.Release()
	for _, h := range slices.Backward(t.handles) {
		_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(t) // see above
	}
	t.handles = nil
}

// made notes a handle to be flushed.
func (t *tpm) made(h tpm2.TPMHandle) { t.handles = append(t.handles, h) }

// flushed forgets a handle that the TPM has flushed by itself.
func (t *tpm) flushed(h tpm2.TPMHandle) {
	t.handles = slices.DeleteFunc(t.handles, func(have tpm2.TPMHandle) bool { return have == h })
}

// srk is the storage root key, loaded.
type srk struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

func (s srk) salted() tpm2.AuthOption { return tpm2.Salted(s.handle, s.public) }

// auth authorizes the use of the SRK, which has an empty password.
func (s srk) auth(session tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: s.handle, Name: s.name, Auth: session}
}

// createSRK derives the SRK. Its answer is not authenticated: before a session
// is salted to it, its name must be compared with one that was stored.
func (t *tpm) createSRK() (srk, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(t)
	if err != nil {
		return srk{}, fmt.Errorf("deriving the SRK: %w", err)
	}
	t.made(rsp.ObjectHandle)
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		return srk{}, fmt.Errorf("reading the SRK: %w", err)
	}
	want := tpm2.ECCSRKTemplate
	want.Unique = public.Unique
	if !bytes.Equal(tpm2.Marshal(public), tpm2.Marshal(want)) {
		return srk{}, errors.New("the TPM derived another kind of SRK than was asked for")
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return srk{}, fmt.Errorf("naming the SRK: %w", err)
	}
	return srk{rsp.ObjectHandle, *name, *public}, nil
}

// session starts an HMAC session that is salted to the SRK.
func (t *tpm) session(s srk, opts ...tpm2.AuthOption) (tpm2.Session, error) {
	session, _, err := tpm2.HMACSession(t, tpm2.TPMAlgSHA256, nonceSize, append(opts, s.salted())...)
	if err != nil {
		return nil, fmt.Errorf("starting a session: %w", err)
	}
	t.made(session.Handle())
	return session, nil
}

// flush ends a session before its time: a TPM has room for three.
func (t *tpm) flush(h tpm2.TPMHandle) error {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t); err != nil {
		return fmt.Errorf("ending a session: %w", err)
	}
	t.flushed(h)
	return nil
}

// seal seals key to the values that pcrs have now.
func (t *tpm) seal(key []byte, pcrs selection) (object, error) {
	parent, err := t.createSRK()
	if err != nil {
		return object{}, err
	}
	values, err := t.readPCRs(parent, pcrs)
	if err != nil {
		return object{}, err
	}
	policy, err := pcrs.policy(values)
	if err != nil {
		return object{}, err
	}
	session, err := t.session(parent, tpm2.AESEncryption(128, tpm2.EncryptInOut))
	if err != nil {
		return object{}, err
	}
	rsp, err := tpm2.Create{
		ParentHandle: parent.auth(session),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key}),
		}},
		InPublic: tpm2.New2B(template(policy, nil)),
	}.Execute(t)
	if err != nil {
		return object{}, fmt.Errorf("creating the sealed key: %w", err)
	}
	o := object{
		pcrs: pcrs, srk: parent.name.Buffer,
		public: rsp.OutPublic.Bytes(), private: rsp.OutPrivate.Buffer,
	}
	for _, v := range values {
		o.hints = append(o.hints, [hintSize]byte(v))
	}
	if err := checkPublic(o.public); err != nil {
		return object{}, err
	}
	if !bytes.Equal(o.policy(), policy) {
		return object{}, errors.New("the TPM made an object with another policy than was asked for")
	}
	return o, nil
}

// unseal asks the TPM for the key of o, and says why not where it refuses.
func (t *tpm) unseal(o object) (keys.Secret, error) {
	parent, err := t.createSRK()
	if err != nil {
		return keys.Secret{}, err
	}
	if !bytes.Equal(parent.name.Buffer, o.srk) {
		return keys.Secret{}, errors.New("this is another TPM than the key was sealed to, or it was cleared since")
	}
	loaded, err := t.load(parent, o)
	if err != nil {
		return keys.Secret{}, err
	}
	key, err := t.unsealLoaded(parent, loaded, o.pcrs)
	if errors.Is(err, tpm2.TPMRCPolicyFail) || errors.Is(err, tpm2.TPMRCPCRChanged) {
		return keys.Secret{}, said("TPM policy does not hold ("+t.changed(parent, o)+")", err)
	}
	return key, err
}

func (t *tpm) load(parent srk, o object) (tpm2.NamedHandle, error) {
	session, err := t.session(parent)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	rsp, err := tpm2.Load{
		ParentHandle: parent.auth(session),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: o.private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](o.public),
	}.Execute(t)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("loading the sealed key: %w", err)
	}
	t.made(rsp.ObjectHandle)
	digest := sha256.Sum256(o.public)
	name := tpm2.TPM2BName{Buffer: append([]byte{0, byte(tpm2.TPMAlgSHA256)}, digest[:]...)}
	if !bytes.Equal(rsp.Name.Buffer, name.Buffer) {
		return tpm2.NamedHandle{}, errors.New("the TPM loaded another object than was asked for")
	}
	return tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: name}, t.flush(session.Handle())
}

// unsealLoaded authorizes by PolicyPCR over what the PCRs are now. The TPM
// compares that with the object's policy, which the name stands for, and the
// answer's HMAC is by a key that only it and we have.
func (t *tpm) unsealLoaded(parent srk, loaded tpm2.NamedHandle, pcrs selection) (keys.Secret, error) {
	session, _, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, nonceSize,
		parent.salted(), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return keys.Secret{}, fmt.Errorf("starting a policy session: %w", err)
	}
	t.made(session.Handle())
	_, err = tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: pcrs.list()}.Execute(t)
	if err != nil {
		return keys.Secret{}, fmt.Errorf("stating the policy: %w", err)
	}
	rsp, err := tpm2.Unseal{
		ItemHandle: tpm2.AuthHandle{Handle: loaded.Handle, Name: loaded.Name, Auth: session},
	}.Execute(t)
	if err != nil {
		return keys.Secret{}, fmt.Errorf("unsealing: %w", err)
	}
	defer clear(rsp.OutData.Buffer)
	if n := len(rsp.OutData.Buffer); n != KeySize {
		return keys.Secret{}, fmt.Errorf("the sealed key has %d bytes, want %d", n, KeySize)
	}
	return keys.NewSecret(rsp.OutData.Buffer), nil
}
