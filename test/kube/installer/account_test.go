package installer

import (
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	installer "github.com/firsthop/firsthop/bootstrap/cluster"
	"github.com/firsthop/firsthop/bootstrap/diagnose"
)

// TestInstallAwaitsTheDefaultAccount: kubeadm init ends before the controller manager has made it, and no pod is accepted
// without it.
func TestInstallAwaitsTheDefaultAccount(t *testing.T) {
	b := newBed(t)
	accounts := b.c.Client.CoreV1().ServiceAccounts(namespace)
	b.must(accounts.Delete(t.Context(), "default", metav1.DeleteOptions{}))
	var once sync.Once
	b.install(diagnose.OK, func(c *installer.Config) {
		c.DryRun = true
		c.Progress = func(s installer.Step) {
			once.Do(func() { // it looks, and asks for a pod next
				go func() {
					account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
					if _, err := accounts.Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
						t.Error(err)
					}
				}()
			})
		}
	})
}
