package core

// State is everything that must survive the agent's death.
type State struct{}

// NewState is the state of a node that has never done anything.
func NewState() *State { return &State{} }
