package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// What agents know and the head does not: the tasks and objects of SDKs. The head passes
// the question on; what each node answers is merged here.

// unreached is a node that gave no answer.
type unreached struct {
	Node    string   `json:"node"`
	Message string   `json:"message"`
	Hints   []string `json:"hints"`
}

// ask puts a question to the nodes of the cluster (node "" = all). Nodes that cannot
// answer are told apart; that none can is an error.
func ask[T any](ctx context.Context, a *app, what, node string, args any) (map[wire.NodeID]T, []unreached, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return nil, nil, errs.Wrap(errs.Internal, err, "the question %s", what)
	}
	ans, err := request[wire.QueryAnswer](ctx, a, wire.MsgQuery, wire.Query{What: what, Node: wire.NodeID(node), Args: b})
	if err != nil {
		return nil, nil, err
	}
	out := map[wire.NodeID]T{}
	var lost []unreached
	var first error
	for _, n := range slices.Sorted(maps.Keys(ans.Nodes)) {
		var v T
		err := ans.Nodes[n].Err.FromWire()
		if err == nil {
			if jerr := json.Unmarshal(ans.Nodes[n].JSON, &v); jerr != nil {
				err = errs.Wrap(errs.Corrupt, jerr, "the answer of node %s", n)
			}
		}
		if err == nil {
			out[n] = v
			continue
		}
		if first == nil {
			first = err
		}
		lost = append(lost, unreached{string(n), err.Error(), mapAll(errs.HintsOf(err), func(s string) string { return s })})
	}
	if len(out) == 0 && first != nil {
		return nil, lost, first
	}
	return out, lost, nil
}

// noteUnreached says which nodes are missing in what was printed.
func (a *app) noteUnreached(lost []unreached) {
	for _, u := range lost {
		a.note("launcher: node %s is not in this: %s", u.Node, u.Message)
	}
}

// isSDKID reports whether s is the id of an SDK's task or object.
func isSDKID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 16
}
