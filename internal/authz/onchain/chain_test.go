package onchain_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/accounts/abi/bind"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/ethclient/simulated"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/rpc"
)

//go:embed testdata/Authority.sol
var source []byte

//go:embed testdata/Authority.json
var artefact []byte

// chainID is that of every simulated backend.
const chainID = 1337

func TestMain(m *testing.M) {
	log.SetDefault(log.NewLogger(log.DiscardHandler()))
	os.Exit(m.Run())
}

// compiled is what the compiler made of the test contract.
type compiled struct {
	SourceSHA256 string          `json:"sourceSha256"`
	ABI          json.RawMessage `json:"abi"`
	Bytecode     hexutil.Bytes   `json:"bytecode"`
}

func readArtefact(t *testing.T) (compiled, abi.ABI) {
	t.Helper()
	var c compiled
	if err := json.Unmarshal(artefact, &c); err != nil {
		t.Fatal(err)
	}
	parsed, err := abi.JSON(strings.NewReader(string(c.ABI)))
	if err != nil {
		t.Fatal(err)
	}
	return c, parsed
}

func TestTheArtefactIsOfTheSource(t *testing.T) {
	c, _ := readArtefact(t)
	sum := sha256.Sum256(source)
	if got := hex.EncodeToString(sum[:]); got != c.SourceSHA256 {
		t.Errorf("Authority.sol has SHA-256 %s, the artefact is of %s: compile it again (testdata/README.md)", got, c.SourceSHA256)
	}
}

// chain is a simulated chain with the contract on it, and go-ethereum's own
// JSON-RPC in front of it over HTTP.
type chain struct {
	t        *testing.T
	backend  *simulated.Backend
	key      *ecdsa.PrivateKey
	contract *bind.BoundContract
	address  common.Address
	url      string
	// answer, when set, may answer in place of the node.
	answer atomic.Pointer[func(w http.ResponseWriter, method string) bool]
	calls  atomic.Int64
}

func newChain(t *testing.T) *chain {
	t.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	rich := new(big.Int).Lsh(big.NewInt(1), 100)
	c := &chain{t: t, key: key}
	c.backend = simulated.NewBackend(types.GenesisAlloc{crypto.PubkeyToAddress(key.PublicKey): {Balance: rich}})
	t.Cleanup(func() {
		if err := c.backend.Close(); err != nil {
			t.Errorf("closing the backend: %v", err)
		}
	})
	art, parsed := readArtefact(t)
	c.address, _, c.contract, err = bind.DeployContract(c.auth(), parsed, art.Bytecode, c.backend.Client())
	if err != nil {
		t.Fatal(err)
	}
	c.backend.Commit()
	server := httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *chain) auth() *bind.TransactOpts {
	c.t.Helper()
	auth, err := bind.NewKeyedTransactorWithChainID(c.key, big.NewInt(chainID))
	if err != nil {
		c.t.Fatal(err)
	}
	auth.Context = c.t.Context()
	auth.GasLimit = 5_000_000
	return auth
}

// set calls a setter of the contract, in a block of its own.
func (c *chain) set(function string, args ...any) {
	c.t.Helper()
	tx, err := c.contract.Transact(c.auth(), function, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.backend.Commit()
	receipt, err := c.backend.Client().TransactionReceipt(c.t.Context(), tx.Hash())
	if err != nil || receipt.Status != types.ReceiptStatusSuccessful {
		c.t.Fatalf("%s: receipt %+v, %v, want success", function, receipt, err)
	}
}

func (c *chain) commit(n int) {
	for range n {
		c.backend.Commit()
	}
}

// instead makes f answer in place of the node where it returns true; nil ends it.
func (c *chain) instead(f func(w http.ResponseWriter, method string) bool) {
	if f == nil {
		c.answer.Store(nil)
		return
	}
	c.answer.Store(&f)
}

type message struct {
	Version string            `json:"jsonrpc"`
	ID      json.RawMessage   `json:"id"`
	Method  string            `json:"method,omitempty"`
	Params  []json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage   `json:"result,omitempty"`
	Error   *messageError     `json:"error,omitempty"`
}

type messageError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Data    any    `json:"data,omitempty"`
}

// serve hands a JSON-RPC call to the node and its answer back.
func (c *chain) serve(w http.ResponseWriter, r *http.Request) {
	c.calls.Add(1)
	var m message
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if f := c.answer.Load(); f != nil && (*f)(w, m.Method) {
		return
	}
	m = c.forward(r.Context(), m)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(m)
}

func (c *chain) forward(ctx context.Context, m message) message {
	// The backend's client is a struct around this one, which no method gives.
	node, ok := reflect.ValueOf(c.backend.Client()).Field(0).Interface().(*ethclient.Client)
	if !ok {
		return message{Version: "2.0", ID: m.ID, Error: &messageError{Code: -32000, Message: "the backend hides its node"}}
	}
	params := make([]any, len(m.Params))
	for i, p := range m.Params {
		params[i] = p
	}
	answer := message{Version: "2.0", ID: m.ID}
	err := node.Client().CallContext(ctx, &answer.Result, m.Method, params...)
	if err == nil {
		return answer
	}
	answer.Error = &messageError{Code: -32000, Message: err.Error()}
	var coded rpc.Error
	if errors.As(err, &coded) {
		answer.Error.Code = coded.ErrorCode()
	}
	var data rpc.DataError
	if errors.As(err, &data) {
		answer.Error.Data = data.ErrorData()
	}
	return answer
}
