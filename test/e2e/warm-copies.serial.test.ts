// What a site keeps of a VM's disks: only changed chunks travel when the VM comes (again), whatever happened to the
// copy meanwhile.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { open, readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { beginSoon } from '../support/disk-scene.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'
import { fillDisk, startWriter, type WriterGuest } from '../support/writer-guest.ts'

const test = suite('e2e/warm-copies', { ms: 240_000 })
const skip = labMissing() || (spawnSync('qemu-nbd', ['--version']).status !== 0 && 'qemu-utils is not installed')

const MIB = 1024 * 1024
const FILLED_MIB = 40
/** What the guest itself has written on its first disk, and writes anew until the end. */
const WRITER_BYTES_MAX = 12 * MIB
const DISKS = (format: string) => `  - {mode: local, size: 64MiB, format: ${format}}\n`
/** A chunk is a chunk on the link too: of the same bytes, little would be left otherwise. */
const PLAIN = 'compression: off\n'
const copyDir = (lab: Lab, site: string) => join(lab.dir, site, 'state', 'copies', 'writer')

async function ended(lab: Lab, id: string): Promise<NonNullable<NonNullable<MigrationRecord['report']>['disks']>> {
  const record = await lab.until(id)
  assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
  return record.report!.disks!
}

async function move(lab: Lab, guest: WriterGuest, to: string) {
  const disks = await ended(lab, await beginSoon(lab, { vm: guest.name, to }))
  await guest.assertWrites(to)
  return disks
}

/** Of disk 1, MiB by MiB, the bytes that it is filled with. */
async function assertFilled(dir: string, format: string, byteAt: (mib: number) => number): Promise<void> {
  const raw = join(dir, 'second.raw')
  const args = ['convert', '-f', format, '-O', 'raw', join(dir, `1.${format}`), raw]
  assert.is(spawnSync('qemu-img', args).status, 0)
  const bytes = await readFile(raw)
  for (let mib = 0; mib < FILLED_MIB; mib++) {
    const part = bytes.subarray(mib * MIB, (mib + 1) * MIB)
    assert.ok(part.equals(Buffer.alloc(MIB, byteAt(mib))), `MiB ${mib} holds ${part[0]}, not ${byteAt(mib)}`)
  }
}

for (const format of ['qcow2', 'raw'])
  test(
    `five hops with ${format} disks: after the first, only what was changed since the last stay travels`,
    async () => {
      await using lab = await openLab({ sites: ['a', 'b'] })
      const guest = await startWriter(lab, 'a', { format, more: DISKS(format) })
      await fillDisk(lab, 'a', { mib: FILLED_MIB })
      const first = await move(lab, guest, 'b')
      assert.ok(first.bytesSent >= FILLED_MIB * MIB, JSON.stringify(first))
      assert.ok((await readdir(copyDir(lab, 'a'))).includes('copy.json'))
      assert.is(existsSync(join(lab.dir, 'a/state/vms/writer')), false, 'the VM itself is gone')
      for (const [hop, to] of ['a', 'b', 'a', 'b'].entries()) {
        const here = to === 'a' ? 'b' : 'a'
        await fillDisk(lab, here, { fromMib: 3 * hop, mib: 2, byte: 41 })
        const disks = await move(lab, guest, to)
        // Two MiB here, and two at the stay before, which this site has not seen yet.
        assert.ok(disks.bytesSent <= 4 * MIB + WRITER_BYTES_MAX, `hop ${hop}: ${JSON.stringify(disks)}`)
        assert.ok(disks.bytesHeld >= 30 * MIB, JSON.stringify(disks))
        assert.is(existsSync(copyDir(lab, to)), false, 'the copy is the disk now')
      }
      const dir = await guest.stopAndCompare('b')
      await assertFilled(dir, format, mib => (mib < 12 && mib % 3 < 2 ? 41 : 1) + mib)
    },
    { skip },
  )

test(
  'a warm copy that was altered by hand is read, and what was altered travels; one with a strange header is not used',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a', { more: DISKS('qcow2') })
    await fillDisk(lab, 'a', { mib: FILLED_MIB })
    await move(lab, guest, 'b')
    // A cluster of data somewhere in the middle.
    await alter(join(copyDir(lab, 'a'), '1.qcow2'), 20 * MIB)
    const back = await move(lab, guest, 'a')
    assert.ok(back.bytesSent <= MIB + WRITER_BYTES_MAX, JSON.stringify(back))
    await move(lab, guest, 'b')
    // Incompatible features: bit 2 is a data file of another name.
    await alter(join(copyDir(lab, 'a'), '1.qcow2'), 79, 0x04)
    const whole = await move(lab, guest, 'a')
    assert.ok(whole.bytesSent >= FILLED_MIB * MIB, JSON.stringify(whole))
    await assertFilled(await guest.stopAndCompare('a'), 'qcow2', mib => 1 + mib)
  },
  { skip },
)

/** A migration to b, of which some has been written there, and no more comes through. */
async function midway(lab: Lab, guest: WriterGuest): Promise<string> {
  // Page streams (index 2 and on) carry the disks first.
  lab.valve.hold(index => index >= 2, { afterBytes: 8 * MIB })
  const id = await beginSoon(lab, { vm: guest.name, to: 'b' })
  await lab.valve.reached()
  const dir = join(lab.dir, 'b/state/vms/writer/disks')
  const writtenBytes = async () => {
    const file = (await readdir(dir)).find(name => /^1\.(raw|qcow2)$/.test(name))
    return (await stat(join(dir, file!))).blocks * 512
  }
  await eventually(async () => ((await writtenBytes()) >= 2 * MIB ? true : undefined), { ms: 20_000, what: 'chunks written at b' })
  return id
}

async function alter(path: string, at: number, byte = 0xee): Promise<void> {
  await using file = await open(path, 'r+')
  await file.write(Buffer.from([byte]), 0, 1, at)
}

test(
  'a migration that is cancelled while disks travel leaves a warm copy at the target: the next one sends the rest',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a', { more: DISKS('qcow2'), top: PLAIN })
    await fillDisk(lab, 'a', { mib: FILLED_MIB })
    const id = await midway(lab, guest)
    await lab.api('DELETE', `/v1/migrations/${id}`)
    lab.valve.open()
    assert.is((await lab.until(id)).outcome, 'cancelled', lab.logTail())
    await guest.assertWrites('a')
    assert.ok(existsSync(copyDir(lab, 'b')), lab.logTail())
    const disks = await move(lab, guest, 'b')
    assert.ok(disks.bytesHeld >= MIB && disks.bytesSent < FILLED_MIB * MIB, JSON.stringify(disks))
    await assertFilled(await guest.stopAndCompare('b'), 'qcow2', mib => 1 + mib)
  },
  { skip },
)

test(
  "the target's agent is killed while disks travel: the next try sends only what had not been written",
  async () => {
    await using lab = await openLab({ engine: 'tls', sites: ['a', ['b', { isProcess: true }]] })
    const guest = await startWriter(lab, 'a', { more: DISKS('raw'), top: PLAIN })
    await fillDisk(lab, 'a', { mib: FILLED_MIB })
    const id = await midway(lab, guest)
    await lab.site('b').kill()
    lab.valve.open()
    await lab.site('b').start()
    assert.is((await lab.until(id)).outcome, 'failed')
    await guest.assertWrites('a')
    assert.ok(existsSync(copyDir(lab, 'b')), lab.logTail())
    const disks = await ended(lab, await beginSoon(lab, { vm: guest.name, to: 'b' }))
    assert.ok(disks.bytesHeld >= MIB && disks.bytesSent < FILLED_MIB * MIB, JSON.stringify(disks))
    await move(lab, guest, 'a')
    await assertFilled(await guest.stopAndCompare('a'), 'raw', mib => 1 + mib)
  },
  { skip },
)

test.run()
