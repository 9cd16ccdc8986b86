package osimage

import (
	"encoding/json"
	"errors"
	"fmt"
)

// maxVMConfig bounds the text of a VM config; one with a measurement document
// has about 3 KB.
const maxVMConfig = 1 << 20

// vmConfig is what counts of a VM config here (docs/osimage.md#vm-config). The
// workload wrote it: the memory size is tried, not believed.
type vmConfig struct {
	MemorySize  uint64       `json:"memory_size"`
	Measurement *measurement `json:"tdx_measurement"`
}

// measurement is the self-contained description of an image; both are base64 in
// JSON.
type measurement struct {
	ChecksumFile []byte `json:"checksum_file"`
	Measurement  []byte `json:"measurement"`
}

// parseVMConfig reads a VM config, also where it is wrapped in the
// configuration of a whole system, as an object or as text, under "vm_config".
func parseVMConfig(text string) (vmConfig, error) {
	for range 2 {
		if len(text) > maxVMConfig {
			return vmConfig{}, errors.New("VM config too large")
		}
		if text == "" {
			return vmConfig{}, nil
		}
		var c struct {
			vmConfig
			Inner json.RawMessage `json:"vm_config"`
		}
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			return vmConfig{}, fmt.Errorf("reading VM config: %w", err)
		}
		if len(c.Inner) == 0 || string(c.Inner) == "null" || c.MemorySize != 0 || c.Measurement != nil {
			return c.vmConfig, nil
		}
		text = string(c.Inner)
		if text[0] == '"' {
			if err := json.Unmarshal(c.Inner, &text); err != nil {
				return vmConfig{}, fmt.Errorf("reading VM config: %w", err)
			}
		}
	}
	return vmConfig{}, errors.New("VM config within a VM config")
}
