package onchain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"golang.org/x/sync/errgroup"

	"teekms/internal/authz"
)

// header is what is read of a block. Its hash is the node's word: chains whose
// blocks have more fields than Ethereum's hash them otherwise.
type header struct {
	Hash      *common.Hash    `json:"hash"`
	Number    *hexutil.Uint64 `json:"number"`
	Timestamp *hexutil.Uint64 `json:"timestamp"`
}

// block returns the hash of the block that counts, and sees that the node is of
// the right chain, and not too far behind.
func (a *Authorizer) block(ctx context.Context) (common.Hash, error) {
	var head *header
	var chain *big.Int
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { head, err = a.header(gctx, string(a.cfg.Finality)); return err })
	g.Go(func() (err error) {
		if chain, err = a.node.ChainID(gctx); err != nil {
			return fmt.Errorf("asking for the chain id: %w", callError(gctx, err))
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return common.Hash{}, err
	}
	if !chain.IsUint64() || chain.Uint64() != a.cfg.ChainID {
		return common.Hash{}, fmt.Errorf("%w: node is of chain %v, want %d", authz.ErrMalformed, chain, a.cfg.ChainID)
	}
	if n := a.cfg.Confirmations; n > 0 {
		var err error
		if head, err = a.before(ctx, head, n); err != nil {
			return common.Hash{}, err
		}
	}
	return *head.Hash, a.recent(head)
}

// before returns the header n blocks before head.
func (a *Authorizer) before(ctx context.Context, head *header, n uint64) (*header, error) {
	number := uint64(*head.Number)
	if number < n {
		return nil, fmt.Errorf("%w: chain of %d blocks, want %d confirmations", authz.ErrUnreachable, number, n)
	}
	h, err := a.header(ctx, hexutil.EncodeUint64(number-n))
	if err != nil {
		return nil, err
	}
	if uint64(*h.Number) != number-n {
		return nil, fmt.Errorf("%w: block %d, want %d", authz.ErrMalformed, uint64(*h.Number), number-n)
	}
	return h, nil
}

// recent says whether the block is new enough to decide by.
func (a *Authorizer) recent(h *header) error {
	if a.cfg.MaxBlockAge <= 0 {
		return nil
	}
	age := a.cfg.Now().Sub(time.Unix(int64(*h.Timestamp), 0)).Truncate(time.Second)
	if age > a.cfg.MaxBlockAge {
		return fmt.Errorf("%w: %s block %d is %v old, want at most %v", authz.ErrUnreachable, a.cfg.Finality, uint64(*h.Number), age, a.cfg.MaxBlockAge)
	}
	return nil
}

// header asks for a block by tag or number.
func (a *Authorizer) header(ctx context.Context, block string) (*header, error) {
	var h *header
	if err := a.node.Client().CallContext(ctx, &h, "eth_getBlockByNumber", block, false); err != nil {
		return nil, fmt.Errorf("asking for the %s block: %w", block, callError(ctx, err))
	}
	if h == nil {
		return nil, fmt.Errorf("asking for the %s block: %w: %w", block, authz.ErrUnreachable, errNoBlock)
	}
	if h.Hash == nil || h.Number == nil || h.Timestamp == nil {
		return nil, fmt.Errorf("asking for the %s block: %w: no hash, number or timestamp", block, authz.ErrMalformed)
	}
	return h, nil
}

var errNoBlock = errors.New("the node has none")
