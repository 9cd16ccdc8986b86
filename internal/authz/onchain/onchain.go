// Package onchain asks a contract on an Ethereum chain who may have keys, by
// calls to a node that change nothing (docs/authz.md#ethereum).
//
// Both calls of a decision read the same block, by its hash: no reorganization
// of the chain can come between them. The node is believed: it belongs to the
// operator, or to someone the operator trusts.
package onchain

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/rpc"
	"golang.org/x/sync/errgroup"

	"teekms/internal/authz"
)

// Authorizer asks a contract. It remembers no decision.
type Authorizer struct {
	cfg      Config
	contract common.Address
	abi      abi.ABI
	http     *http.Client
	node     *ethclient.Client
	facts    *authz.FactsCache
}

// New returns an authority for the contract. It does not speak to the node yet.
func New(cfg Config) (*Authorizer, error) {
	contract, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	parsed, err := parseABI()
	if err != nil {
		return nil, err
	}
	client, err := newClient(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	// Over HTTP this connects to nothing, so no context could end it.
	node, err := rpc.DialOptions(context.Background(), string(cfg.URL.Bytes()), rpc.WithHTTPClient(client))
	if err != nil {
		return nil, errors.New("URL of the node cannot be used")
	}
	a := &Authorizer{cfg: cfg, contract: contract, abi: parsed, http: client, node: ethclient.NewClient(node)}
	a.facts, err = authz.NewFactsCache(authz.FactsConfig{Fetch: a.fetchFacts, Log: cfg.Log, Now: cfg.Now})
	return a, err
}

// Close closes the connections that are idle.
func (a *Authorizer) Close() {
	a.node.Close()
	a.http.CloseIdleConnections()
}

// Authorize asks the contract. What does not fit into its types is denied
// without asking.
func (a *Authorizer) Authorize(ctx context.Context, r authz.Request) (authz.Decision, error) {
	function, err := functionFor(r.Subject)
	if err != nil {
		return authz.Decision{}, err
	}
	info, err := pack(&r.BootInfo)
	if err != nil {
		return authz.Decision{Reason: authz.PublicReason("invalid authorization request: " + err.Error())}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	at, err := a.block(ctx)
	if err != nil {
		return authz.Decision{}, err
	}
	var decision, gateway []byte
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { decision, err = a.call(gctx, at, function, info); return err })
	g.Go(func() (err error) { gateway, err = a.call(gctx, at, funcGateway); return err })
	if err := g.Wait(); err != nil {
		return authz.Decision{}, err
	}
	return a.readDecision(function, decision, gateway)
}

func functionFor(s authz.Subject) (string, error) {
	switch s {
	case authz.App:
		return funcApp, nil
	case authz.KMS:
		return funcKMS, nil
	default:
		return "", errors.New("request for a subject that there is not")
	}
}

// readDecision reads what the two functions returned.
func (a *Authorizer) readDecision(function string, decision, gateway []byte) (authz.Decision, error) {
	values, err := a.unpack(function, decision)
	if err != nil {
		return authz.Decision{}, err
	}
	id, err := a.readGateway(gateway)
	if err != nil {
		return authz.Decision{}, err
	}
	allowed, isBool := values[0].(bool)
	reason, isText := values[1].(string)
	if !isBool || !isText {
		return authz.Decision{}, fmt.Errorf("reading %s: %w: values of other types", function, authz.ErrMalformed)
	}
	return authz.Decision{Allowed: allowed, Reason: authz.PublicReason(reason), GatewayAppID: id}, nil
}

func (a *Authorizer) readGateway(answer []byte) (string, error) {
	values, err := a.unpack(funcGateway, answer)
	if err != nil {
		return "", err
	}
	id, isText := values[0].(string)
	if !isText {
		return "", fmt.Errorf("reading %s: %w: value of another type", funcGateway, authz.ErrMalformed)
	}
	if err := authz.CheckGatewayAppID(id); err != nil {
		return "", fmt.Errorf("reading %s: %w: %w", funcGateway, authz.ErrMalformed, err)
	}
	return id, nil
}

// call calls a function of the contract as of a block and returns what it
// returned.
func (a *Authorizer) call(ctx context.Context, at common.Hash, function string, args ...any) ([]byte, error) {
	data, err := a.abi.Pack(function, args...)
	if err != nil {
		return nil, fmt.Errorf("packing %s: %w", function, err)
	}
	answer, err := a.node.CallContractAtHash(ctx, ethereum.CallMsg{To: &a.contract, Data: data}, at)
	if err != nil {
		return nil, fmt.Errorf("calling %s: %w", function, callError(ctx, err))
	}
	return answer, nil
}

// unpack reads what a function returned: as many values as the ABI names, of
// the types it names.
func (a *Authorizer) unpack(function string, answer []byte) ([]any, error) {
	if len(answer) == 0 {
		return nil, fmt.Errorf("reading %s: %w: empty, no such contract there", function, authz.ErrMalformed)
	}
	values, err := a.abi.Unpack(function, answer)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w: %w", function, authz.ErrMalformed, err)
	}
	return values, nil
}

// Facts returns the contract's address, its chain, gateway and implementation
// of applications, asked at most every authz.DefaultFactsLifetime.
func (a *Authorizer) Facts(ctx context.Context) (authz.Facts, error) {
	f, err := a.facts.Get(ctx)
	// These are known without asking.
	f.ContractAddress, f.ChainID, f.EthRPCURL = a.contract.Hex(), a.cfg.ChainID, a.cfg.PublicURL
	return f, err
}

func (a *Authorizer) fetchFacts(ctx context.Context) (authz.Facts, error) {
	at, err := a.block(ctx)
	if err != nil {
		return authz.Facts{}, err
	}
	gateway, err := a.call(ctx, at, funcGateway)
	if err != nil {
		return authz.Facts{}, err
	}
	id, err := a.readGateway(gateway)
	if err != nil {
		return authz.Facts{}, err
	}
	implementation, err := a.call(ctx, at, funcImplementation)
	if err != nil {
		return authz.Facts{}, err
	}
	values, err := a.unpack(funcImplementation, implementation)
	if err != nil {
		return authz.Facts{}, err
	}
	address, isAddress := values[0].(common.Address)
	if !isAddress {
		return authz.Facts{}, fmt.Errorf("reading %s: %w: value of another type", funcImplementation, authz.ErrMalformed)
	}
	return authz.Facts{GatewayAppID: id, AppImplementation: address.Hex()}, nil
}
