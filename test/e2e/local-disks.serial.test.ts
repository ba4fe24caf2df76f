// VMs with local disks move while their guest writes: disk and memory arrive as of one instant, and nothing of them
// stays behind.

import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readlinkSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { MigrationRecord } from '../../wire/admin.ts'
import { MIB } from '../../wire/units.ts'
import { beginSoon } from '../support/disk-scene.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'
import { startWriter, type WriterGuest } from '../support/writer-guest.ts'

const test = suite('e2e/local-disks', { ms: 240_000 })
const skip = labMissing() || (spawnSync('qemu-nbd', ['--version']).status !== 0 && 'qemu-utils is not installed')

const vmDir = (lab: Lab, site: string, name: string) => join(lab.dir, site, 'state', 'vms', name)

async function move(lab: Lab, guest: WriterGuest, to: string, method: 'live' | 'cold' = 'live'): Promise<MigrationRecord> {
  const record = await lab.until(await beginSoon(lab, { vm: guest.name, to, method }))
  assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
  await guest.assertWrites(to)
  return record
}

for (const format of ['qcow2', 'raw'])
  test(
    `a guest that writes to a ${format} disk all the time moves there and back, live and cold, beside a disk that it leaves alone`,
    async () => {
      await using lab = await openLab({ sites: ['a', 'b'] })
      const guest = await startWriter(lab, 'a', { format, more: '  - {mode: local, size: 16MiB, format: raw}\n' })
      // Data on the second disk, as a guest would have written it.
      const qmp = lab.site('a').node.registry.machine(guest.name).qmp
      await qmp.execute('human-monitor-command', {
        'command-line': 'qemu-io -d /machine/peripheral/blk1/virtio-backend "write -P 0x5a 3M 200k"',
      })
      const first = await move(lab, guest, 'b')
      const { disks } = first.report!
      assert.ok(disks && disks.rounds >= 2 && disks.bytesSent >= 204_800, JSON.stringify(disks))
      // Holes are not even read.
      assert.ok(disks.bytesHeld + disks.bytesZero < 4 * MIB, JSON.stringify(disks))
      assert.is(existsSync(vmDir(lab, 'a', guest.name)), false, 'nothing stays at the source')
      // LevelDB opens its files without O_CLOEXEC: a QEMU that its guest has taken over could write to the journal.
      const { pid } = lab.site('b').node.registry.machine(guest.name)
      const open = readdirSync(`/proc/${pid}/fd`).map(fd => readlinkSync(`/proc/${pid}/fd/${fd}`))
      const allowed = [vmDir(lab, 'b', guest.name), join(lab.dir, 'b', 'images', 'writer')]
      const others = open.filter(path => path.startsWith(lab.dir) && !allowed.some(known => path.startsWith(known)))
      assert.equal(others, [])
      await move(lab, guest, 'a', 'cold')
      await move(lab, guest, 'b')
      const dir = await guest.stopAndCompare('b')
      const second = await readFile(join(dir, '1.raw'))
      assert.ok(second.subarray(3 * MIB, 3 * MIB + 204_800).every(byte => byte === 0x5a))
      assert.ok(second.subarray(0, 3 * MIB).every(byte => byte === 0))
      if (format === 'qcow2') execFileSync('qemu-img', ['check', '-q', join(dir, '0.qcow2')])
    },
    { skip },
  )

test(
  'a migration that is cancelled while disks travel leaves the guest writing at its source, without a bitmap or an export',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a')
    const id = await beginSoon(lab, { vm: guest.name, to: 'b' })
    await lab.until(id, ({ progress }) => progress?.phase === 'disks' || progress?.phase === 'precopy')
    await lab.api('DELETE', `/v1/migrations/${id}`)
    assert.is((await lab.until(id)).outcome, 'cancelled', lab.logTail())
    await guest.assertWrites('a')
    const { qmp } = lab.site('a').node.registry.machine(guest.name)
    const nodes = await qmp.execute<Record<string, unknown>[]>('query-named-block-nodes', { flat: true })
    assert.equal(
      nodes.flatMap(node => (node['dirty-bitmaps'] as unknown[] | undefined) ?? []),
      [],
    )
    assert.equal(await qmp.execute('query-block-exports'), [])
    assert.is(existsSync(vmDir(lab, 'b', guest.name)), false, 'nothing stays at the target')
    await move(lab, guest, 'b')
    await guest.stopAndCompare('b')
  },
  { skip },
)

test.run()
