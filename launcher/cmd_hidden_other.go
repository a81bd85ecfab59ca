//go:build !linux

package main

import "github.com/spf13/cobra"

// nodeCommands are the processes that run on Linux only.
func (a *app) nodeCommands() []*cobra.Command { return nil }
