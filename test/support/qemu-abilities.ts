// What QEMU can do on this host, measured as often as a node needs to rule KVM out, so that nodes of tests need not
// measure it again.
import { findQemu, KVM_MISSES_MAX, qemuAbilities } from '../../edge-node/vm/qemu.ts'

export async function measureForGood(cacheFile: string): Promise<void> {
  const qemu = await findQemu()
  for (let start = 0; start < KVM_MISSES_MAX; start++) await qemuAbilities(qemu, { cacheFile })
}
