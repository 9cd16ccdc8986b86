package osimage

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"teekms/internal/attest"
	"teekms/internal/osimage/boot"
)

const (
	liteName     = "measurement.tdx.cbor"
	liteVersion  = 3
	liteFirmware = "pre202505"
	maxLite      = 64 << 10
)

// facts are what is known of an image, whatever the source: from these and what
// the workload says of its machine its registers are computed.
type facts struct {
	mrtd            [2]attest.Measurement // single pass, two passes
	cfv             attest.Measurement
	layout          *boot.Layout
	cmdline, initrd attest.Measurement
	// kernel is the digest of the kernel in a guest of usual memory.
	kernel attest.Measurement
}

// The registers, as Result.Registers and MismatchError name them.
const (
	registerMRTD  = "MRTD"
	registerRTMR0 = "RTMR0"
	registerRTMR1 = "RTMR1"
	registerRTMR2 = "RTMR2"
)

// result compares the registers of a quote with those that the image has in a
// machine with that much memory and the ACPI tables of the event log. Only the
// workload's word says which these are, but RTMR0 has them.
func (f *facts) result(by string, s Subject, memory uint64) (Result, error) {
	if s.Claims.MRTD != f.mrtd[0] && s.Claims.MRTD != f.mrtd[1] {
		return Result{}, &MismatchError{registerMRTD}
	}
	acpi, err := boot.ACPIFromLog(s.Log, by == ByLite)
	if err != nil {
		return Result{}, notVerified(err)
	}
	hob, err := f.layout.HandOffBlock(memory)
	if err != nil {
		return Result{}, notVerified(err)
	}
	r := Result{By: by, Registers: []string{registerMRTD}}
	for i, want := range []attest.Measurement{boot.RTMR0(hob, f.cfv, acpi), boot.RTMR1(f.kernel), boot.RTMR2(f.cmdline, f.initrd)} {
		register := []string{registerRTMR0, registerRTMR1, registerRTMR2}[i]
		if s.Claims.RTMR[i] != want {
			return Result{}, &MismatchError{register}
		}
		r.Registers = append(r.Registers, register)
	}
	return r, nil
}

// liteFacts reads a measurement document and what binds it to an image's hash.
func liteFacts(hash []byte, m *measurement) (*facts, error) {
	if len(m.Measurement) > maxLite {
		return nil, errors.New("measurement document too large")
	}
	if sum := sha256.Sum256(m.ChecksumFile); string(sum[:]) != string(hash) {
		return nil, errors.New("checksum file is not that of the OS image hash")
	}
	listed, err := parseSums(m.ChecksumFile)
	if err != nil {
		return nil, err
	}
	want, ok := listed[liteName]
	if !ok || want != sha256.Sum256(m.Measurement) {
		return nil, fmt.Errorf("measurement document is not the %s that the checksum file lists", liteName)
	}
	f, err := parseLite(m.Measurement)
	if err != nil {
		return nil, fmt.Errorf("reading measurement document: %w", err)
	}
	return f, nil
}

// parseLite reads the document:
//
//	{version: 3, image: {cmdline_sha384, kernel_authenticode, initrd_sha384},
//	 tdvf: {ovmf, mrtd: {single_pass, two_pass}, td_hob}}
func parseLite(b []byte) (*facts, error) {
	top, err := decodeCBOR(b)
	if err != nil {
		return nil, err
	}
	// The version decides what else there may be, so that it is looked at first.
	if top["version"] != uint64(liteVersion) {
		return nil, fmt.Errorf("version is not %d", liteVersion)
	}
	f := &facts{cfv: boot.CFV()}
	image, err := section(top, "image", 3)
	if err != nil {
		return nil, err
	}
	tdvf, err := section(top, "tdvf", 3)
	if err != nil {
		return nil, err
	}
	mrtd, err := section(tdvf, "mrtd", 2)
	if err != nil {
		return nil, err
	}
	if len(top) != 3 {
		return nil, errors.New("unknown keys")
	}
	for _, d := range []struct {
		in   cborMap
		key  string
		into *attest.Measurement
	}{
		{image, "cmdline_sha384", &f.cmdline},
		{image, "kernel_authenticode", &f.kernel},
		{image, "initrd_sha384", &f.initrd},
		{mrtd, "single_pass", &f.mrtd[0]},
		{mrtd, "two_pass", &f.mrtd[1]},
	} {
		b, ok := d.in[d.key].([]byte)
		if !ok || len(b) != attest.MeasurementSize {
			return nil, fmt.Errorf("%s is not a digest of %d bytes", d.key, attest.MeasurementSize)
		}
		*d.into = attest.Measurement(b)
	}
	if tdvf["ovmf"] != liteFirmware {
		return nil, errors.New("ovmf is not " + liteFirmware)
	}
	witness, ok := tdvf["td_hob"].([]byte)
	if !ok {
		return nil, errors.New("td_hob is not a byte string")
	}
	if f.layout, err = boot.ParseWitness(witness); err != nil {
		return nil, fmt.Errorf("td_hob: %w", err)
	}
	return f, nil
}

func section(m cborMap, key string, size int) (cborMap, error) {
	inner, ok := m[key].(cborMap)
	if !ok || len(inner) != size {
		return nil, fmt.Errorf("%s is not a map of %d", key, size)
	}
	return inner, nil
}
