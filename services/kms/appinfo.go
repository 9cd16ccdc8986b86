package kms

import (
	"crypto/sha256"
	"encoding/binary"

	"teekms/internal/attest/eventlog"
	"teekms/internal/authz"
	"teekms/internal/ratls"
)

// eventInitScriptHash measures a script that a guest runs before its
// application, 32 bytes, once for each.
const eventInitScriptHash = "init-script-hash"

// The msgpack types that are used here.
const (
	msgpackNil    = 0xc0
	msgpackArray  = 0x90 // and the number of elements, up to 15
	msgpackBin8   = 0xc4
	msgpackBin16  = 0xc5
	msgpackBin32  = 0xc6
	msgpackArr16  = 0xdc
	maxFixedArray = 15
)

// appInfo encodes what is known of an application, for extension 9: a msgpack
// array, not a map, of which all but the last are bin:
//
//	[app_id, compose_hash, instance_id, device_id, mr_system, mr_aggregated,
//	 os_image_hash, key_provider_info, nil | [init_script_hash, ...]]
//
// It speaks of the application as it is now, with its key provider, while it was
// authorized as it was at boot.
func appInfo(a *ratls.Attested, g *grant) ([]byte, error) {
	info, err := authz.Describe(a, authz.DescribeOptions{VMConfig: g.info.VMConfig})
	if err != nil {
		return nil, describeRefusal(err)
	}
	out := []byte{msgpackArray | 9}
	for _, field := range [][]byte{
		info.AppID, info.ComposeHash, info.InstanceID, info.DeviceID[:], info.MRSystem[:], info.MRAggregated[:],
		g.info.OSImageHash, info.KeyProviderInfo,
	} {
		out = appendBin(out, field)
	}
	scripts := initScripts(a.Log)
	if len(scripts) == 0 {
		return append(out, msgpackNil), nil
	}
	out = appendArray(out, len(scripts))
	for _, hash := range scripts {
		out = appendBin(out, hash)
	}
	return out, nil
}

// initScripts returns the hashes of the scripts that the set-up measured, before
// the end of the boot. What an application extends later is not one of them.
func initScripts(log eventlog.Log) [][]byte {
	var hashes [][]byte
	for _, e := range log.RuntimeEvents() {
		switch {
		case e.Name == eventlog.EventBootMRDone, e.Name == eventlog.EventSystemReady:
			return hashes
		case e.Name == eventInitScriptHash && len(e.Payload) == sha256.Size:
			hashes = append(hashes, e.Payload)
		}
	}
	return hashes
}

func appendBin(dst, b []byte) []byte {
	switch n := len(b); {
	case n <= 0xff:
		dst = append(dst, msgpackBin8, byte(n))
	case n <= 0xffff:
		dst = binary.BigEndian.AppendUint16(append(dst, msgpackBin16), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint32(append(dst, msgpackBin32), uint32(n))
	}
	return append(dst, b...)
}

func appendArray(dst []byte, n int) []byte {
	if n <= maxFixedArray {
		return append(dst, msgpackArray|byte(n))
	}
	return binary.BigEndian.AppendUint16(append(dst, msgpackArr16), uint16(n))
}
