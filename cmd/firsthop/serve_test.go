package main

import (
	"testing"
)

func TestInitServes(t *testing.T) {
	n := newNode(t)
	n.serving()
	r := n.init()
	_ = r
}
