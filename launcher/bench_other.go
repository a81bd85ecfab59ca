//go:build !linux

package main

func stealTicks() (steal, total int64) { return 0, 0 }
func residentBytes(int) int64          { return 0 }
func cpuSeconds(int) float64           { return 0 }
func cpuOf(string, []int) float64      { return 0 }
