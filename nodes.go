package launcher

import "context"

// Node is a machine of the cluster.
type Node struct {
	ID        string             `codec:"NodeID"` // what OnNode takes
	Name      string             `codec:"NodeName"`
	Address   string             `codec:"NodeManagerAddress"`
	Pool      string             `codec:"Pool"`
	Alive     bool               `codec:"Alive"`
	State     string             `codec:"State"`
	Resources map[string]float64 `codec:"Resources"` // CPU, GPU, memory in bytes, and what its pool defines
}

// Nodes lists the machines that the cluster has or had.
func Nodes(ctx context.Context) ([]Node, error) {
	var out []Node
	err := question(ctx, "nodes", &out)
	return out, err
}

// Available is what of the cluster's resources is free now, by the names that Node has
// them by. It is a moment's picture: to run something when there is room, submit it.
func Available(ctx context.Context) (map[string]float64, error) {
	var out map[string]float64
	err := question(ctx, "available_resources", &out)
	return out, err
}

// question asks the agent; its answer is msgpack with maps.
func question(ctx context.Context, verb string, out any) error {
	c, err := connected(ctx)
	if err != nil {
		return err
	}
	return c.ask(ctx, out, verb)
}
