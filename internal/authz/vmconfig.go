package authz

import (
	"encoding/hex"
	"fmt"

	"teekms/internal/authz/strictjson"
)

// Bounds of a description of a machine. A real one has 1 to 8 KB and a hash of
// 32 bytes.
const (
	MaxVMConfigSize    = 256 << 10
	MaxOSImageHashSize = 64
)

// vmConfigMember is where a guest's system configuration, which old guests
// embed in its place, has the description of the machine.
const vmConfigMember = "vm_config"

const osImageHashMember = "os_image_hash"

// OSImageHash returns the os_image_hash that a description of a machine states,
// nil when it states none (docs/authz.md#vm-config). Hex is taken in either
// case, without 0x. The error is [ErrVMConfig].
func OSImageHash(vmConfig string) ([]byte, error) {
	o, err := parseVMConfig(vmConfig)
	if err != nil {
		return nil, err
	}
	return osImageHash(o)
}

func parseVMConfig(text string) (strictjson.Object, error) {
	if len(text) > MaxVMConfigSize {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrVMConfig, len(text), MaxVMConfigSize)
	}
	o, err := strictjson.Parse([]byte(text), osImageHashMember, vmConfigMember)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVMConfig, err)
	}
	return o, nil
}

func osImageHash(o strictjson.Object) ([]byte, error) {
	if !o.Has(osImageHashMember) {
		return nil, nil
	}
	text, err := o.Text(osImageHashMember)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVMConfig, err)
	}
	if len(text) > 2*MaxOSImageHashSize {
		return nil, fmt.Errorf("%w: %s: %d characters, want at most %d", ErrVMConfig, osImageHashMember, len(text), 2*MaxOSImageHashSize)
	}
	hash, err := hex.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: want hex", ErrVMConfig, osImageHashMember)
	}
	return hash, nil
}

// chooseVMConfig returns the description that counts, and its hash: that of the
// request if it has one, else the embedded one, else an empty one. An embedded
// text may be a whole system configuration, with the description as text inside.
func chooseVMConfig(requested, embedded string) (string, []byte, error) {
	text := requested
	if text == "" {
		text = embedded
	}
	if text == "" {
		text = "{}"
	}
	o, err := parseVMConfig(text)
	if err != nil {
		return "", nil, err
	}
	if requested == "" && !o.Has(osImageHashMember) && o.Has(vmConfigMember) {
		inner, err := o.Text(vmConfigMember)
		if err != nil {
			return "", nil, fmt.Errorf("%w: %w", ErrVMConfig, err)
		}
		text = inner
		if o, err = parseVMConfig(inner); err != nil {
			return "", nil, err
		}
	}
	hash, err := osImageHash(o)
	return text, hash, err
}
