package e2e

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers are the folders of the product from top to bottom. A package may
// import its own layer and those below. More specific prefixes come first
// within the whole table: attest/* stands above attest.
var layers = [][]string{
	{"cmd"},
	{"services", "client"},
	{"internal/authz", "internal/storage", "internal/ratls", "internal/prpc", "internal/rpc", "internal/serve"},
	{"internal/registry", "internal/audit", "internal/keys/keystore", "internal/keys/seal", "internal/attest/*", "internal/osimage"},
	{"internal/keys", "internal/pkcs12", "internal/attest", "internal/durable", "internal/config", "internal/observe"},
	{"gen"},
}

// layerOf returns the layer and the entry that a package belongs to, -1 where
// there is none.
func layerOf(pkg string) (layer int, entry string) {
	layer, entry = -1, ""
	for i, names := range layers {
		for _, name := range names {
			prefix, below := strings.CutSuffix(name, "/*")
			matches := strings.HasPrefix(pkg, prefix+"/") || !below && pkg == prefix
			if matches && len(name) > len(entry) {
				layer, entry = i, name
			}
		}
	}
	return layer, entry
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func listPackages(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func TestImportsOnlyGoDown(t *testing.T) {
	packages := listPackages(t, "./...")
	if len(packages) < 15 {
		t.Fatalf("go list found %d packages only", len(packages))
	}
	for _, p := range packages {
		from := strings.TrimPrefix(p.ImportPath, "teekms/")
		layer, _ := layerOf(from)
		if layer < 0 {
			t.Errorf("%s is in no layer", p.ImportPath)
			continue
		}
		if last := from[strings.LastIndex(from, "/")+1:]; slices.Contains([]string{"util", "common", "helper", "base", "types", "constants"}, last) {
			t.Errorf("%s: the name says nothing", p.ImportPath)
		}
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, "teekms/")
			if !ours {
				continue
			}
			below, entry := layerOf(to)
			switch {
			case below < layer:
				t.Errorf("%s imports %s, which stands above it", from, to)
			case entry == "services" && strings.HasPrefix(from, "services/") && service(from) != service(to):
				t.Errorf("%s imports %s: services do not know each other", from, to)
			case to == "internal/config" && layer != 0:
				t.Errorf("%s imports %s: only cmd reads the configuration", from, to)
			case strings.HasPrefix(from, "cmd/kmsctl") && entry == "services":
				t.Errorf("%s imports %s: the client does not link the services", from, to)
			}
		}
	}
}

// service returns the first folder below services.
func service(pkg string) string {
	return strings.Split(strings.TrimPrefix(pkg, "services/"), "/")[0]
}

// TestServersLinkOnlyWhatTheyNeed guards the measured code: what a server
// binary links is in somebody's trust domain.
func TestServersLinkOnlyWhatTheyNeed(t *testing.T) {
	everywhere := []string{"github.com/google/go-tdx-guest/", "testing", "internal/durable/durabletest", "internal/keys/seal/tpm/swtpm"}
	drivers := []string{
		"modernc.org/", "github.com/mattn/", "github.com/jackc/", "github.com/lib/", "github.com/go-sql-driver/", "github.com/redis/",
		"github.com/ncruces/", "github.com/pressly/", "internal/storage/sqldb", "internal/storage/redisdb", "internal/pkcs12",
	}
	chain := []string{"github.com/ethereum/go-ethereum/ethclient", "github.com/ethereum/go-ethereum/rpc", "internal/authz/onchain"}
	forbidden := map[string][]string{
		"dstack-onboard": append(append(drivers, chain...), everywhere...),
		"dstack-kms":     everywhere,
	}
	for command, bad := range forbidden {
		for _, p := range listPackages(t, "-deps", "./cmd/"+command) {
			for _, b := range bad {
				if p.ImportPath == b || strings.HasPrefix(p.ImportPath, b) && strings.HasSuffix(b, "/") || p.ImportPath == "teekms/"+b {
					t.Errorf("%s links %s", command, p.ImportPath)
				}
			}
		}
	}
}

// modules are all modules that any server binary may contain.
var modules = []string{
	"connectrpc.com/connect", "connectrpc.com/grpchealth", "connectrpc.com/grpcreflect",
	"filippo.io/age", "filippo.io/edwards25519", "filippo.io/hpke",
	"github.com/beorn7/perks", "github.com/cespare/xxhash/v2", "github.com/decred/dcrd/dcrec/secp256k1/v4",
	"github.com/ethereum/go-ethereum", "github.com/google/go-configfs-tsm", "github.com/google/go-tpm", "github.com/holiman/uint256",
	"github.com/munnerz/goautoneg", "github.com/pelletier/go-toml/v2", "github.com/prometheus/client_golang",
	"github.com/prometheus/client_model", "github.com/prometheus/common", "github.com/prometheus/procfs",
	"github.com/spf13/cobra", "github.com/spf13/pflag", "go.uber.org/multierr", "go.uber.org/zap",
	"go.yaml.in/yaml/v2", "golang.org/x/crypto", "golang.org/x/net", "golang.org/x/sync", "golang.org/x/sys", "golang.org/x/term", "golang.org/x/text",
	"google.golang.org/protobuf", "teekms/gen",
}

// chainModules are those that dstack-kms contains besides, for the sake of
// go-ethereum's ethclient, which reads the contracts of core.auth_api.ethereum.
var chainModules = []string{
	"github.com/bits-and-blooms/bitset", "github.com/consensys/gnark-crypto", "github.com/crate-crypto/go-eth-kzg",
	"github.com/crate-crypto/go-ipa", "github.com/deckarep/golang-set/v2", "github.com/ethereum/go-verkle",
	"github.com/gorilla/websocket", "github.com/shirou/gopsutil", "github.com/tklauser/go-sysconf", "github.com/tklauser/numcpus",
}

// databaseModules are those that dstack-kms contains for the sake of its
// database and the PKCS#12 that goes with it.
var databaseModules = []string{
	"github.com/go-sql-driver/mysql", "github.com/jackc/pgpassfile", "github.com/jackc/pgservicefile",
	"github.com/jackc/pgx/v5", "github.com/jackc/puddle/v2", "github.com/mfridman/interpolate", "github.com/ncruces/go-sqlite3",
	"github.com/ncruces/go-sqlite3-wasm/v6", "github.com/ncruces/julianday", "github.com/pressly/goose/v3",
	"github.com/redis/go-redis/v9", "github.com/sethvargo/go-retry", "go.uber.org/atomic", "golang.org/x/mod",
	"lukechampine.com/adiantum", "software.sslmate.com/src/go-pkcs12",
}

func TestServersContainOnlyKnownModules(t *testing.T) {
	for command, known := range map[string][]string{
		"dstack-kms": slices.Concat(modules, chainModules, databaseModules), "dstack-onboard": modules,
	} {
		out, err := exec.Command("go", "version", "-m", binary(t, command)).Output()
		if err != nil {
			t.Fatal(err)
		}
		deps := 0
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "dep" {
				continue
			}
			deps++
			if !slices.Contains(known, fields[1]) {
				t.Errorf("%s contains %s: does it earn its place?", command, fields[1])
			}
		}
		if deps < 5 {
			t.Errorf("%s: go version -m shows %d dependencies", command, deps)
		}
	}
}
