package onchain

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"

	"teekms/internal/authz"
)

// contractABI is the part of the KMS contract that is read
// (docs/authz.md#contract).
const contractABI = `[
{"type":"function","name":"isAppAllowed","stateMutability":"view","inputs":[` + bootInfoABI + `],"outputs":[{"name":"isAllowed","type":"bool"},{"name":"reason","type":"string"}]},
{"type":"function","name":"isKmsAllowed","stateMutability":"view","inputs":[` + bootInfoABI + `],"outputs":[{"name":"isAllowed","type":"bool"},{"name":"reason","type":"string"}]},
{"type":"function","name":"gatewayAppId","stateMutability":"view","inputs":[],"outputs":[{"name":"","type":"string"}]},
{"type":"function","name":"appImplementation","stateMutability":"view","inputs":[],"outputs":[{"name":"","type":"address"}]}
]`

const bootInfoABI = `{"name":"bootInfo","type":"tuple","components":[
{"name":"appId","type":"address"},
{"name":"composeHash","type":"bytes32"},
{"name":"instanceId","type":"address"},
{"name":"deviceId","type":"bytes32"},
{"name":"mrAggregated","type":"bytes32"},
{"name":"mrSystem","type":"bytes32"},
{"name":"osImageHash","type":"bytes32"},
{"name":"tcbStatus","type":"string"},
{"name":"advisoryIds","type":"string[]"}]}`

// The functions of the contract.
const (
	funcApp            = "isAppAllowed"
	funcKMS            = "isKmsAllowed"
	funcGateway        = "gatewayAppId"
	funcImplementation = "appImplementation"
)

func parseABI() (abi.ABI, error) {
	parsed, err := abi.JSON(strings.NewReader(contractABI))
	if err != nil {
		return abi.ABI{}, fmt.Errorf("reading the contract's interface: %w", err)
	}
	return parsed, nil
}

// tuple is AppBootInfo of the contract.
type tuple struct {
	AppID        common.Address `abi:"appId"`
	ComposeHash  [32]byte       `abi:"composeHash"`
	InstanceID   common.Address `abi:"instanceId"`
	DeviceID     [32]byte       `abi:"deviceId"`
	MRAggregated [32]byte       `abi:"mrAggregated"`
	MRSystem     [32]byte       `abi:"mrSystem"`
	OSImageHash  [32]byte       `abi:"osImageHash"`
	TCBStatus    string         `abi:"tcbStatus"`
	AdvisoryIDs  []string       `abi:"advisoryIds"`
}

// pack puts boot information into the contract's types. A value of another
// length is refused and never filled up: two workloads would look like one.
func pack(b *authz.BootInfo) (tuple, error) {
	t := tuple{
		DeviceID:     b.DeviceID,
		MRAggregated: b.MRAggregated,
		MRSystem:     b.MRSystem,
		TCBStatus:    b.TCBStatus,
		AdvisoryIDs:  b.AdvisoryIDs,
	}
	return t, errors.Join(
		exact("app id", t.AppID[:], b.AppID),
		exact("compose hash", t.ComposeHash[:], b.ComposeHash),
		instance(t.InstanceID[:], b.InstanceID),
		exact("OS image hash", t.OSImageHash[:], b.OSImageHash),
	)
}

func exact(name string, to, from []byte) error {
	if len(from) != len(to) {
		return fmt.Errorf("%s of %d bytes, want %d", name, len(from), len(to))
	}
	copy(to, from)
	return nil
}

// instance packs an instance id. Applications may be without one, which the
// contract knows as the zero address.
func instance(to, from []byte) error {
	if len(from) == 0 {
		return nil
	}
	return exact("instance id", to, from)
}
