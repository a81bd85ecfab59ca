//go:build !linux

package main

import (
	"context"
	"time"
)

// Clusters run on Linux; elsewhere only their commands do, and no process is ours.

func nodeProcesses(target) []process                                       { return nil }
func endProcesses(context.Context, target, time.Duration) (left []process) { return nil }
