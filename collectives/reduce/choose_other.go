//go:build !amd64

package reduce

func choose() (t [endType][endOp]kernel, name string) { return t, "go" }

func choices() map[string][endType][endOp]kernel { return nil }
