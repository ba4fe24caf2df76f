// The guest program in a real QEMU under emulation: that it beats, that it audits, and above all that its audit sees
// what it must see.

import { createHash } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { open, readFile, truncate, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createWitness } from '../../guest/beats.ts'
import { eventually } from '../../ops/deadline.ts'
import { bootGuest, guestMissing } from '../support/guest.ts'
import { assert, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const MiB = 1024 * 1024
const test = suite('guest', { ms: 60_000 })
const skip = guestMissing()

test(
  'it fills memory, beats, audits clean, obeys and powers off',
  async () => {
    await using guest = bootGuest({ fillBytes: 48 * MiB, dirtyBytesPerSecond: 8 * MiB, seed: 7 })
    const ready = await guest.seen('ready', { past: true })
    assert.is(ready.pages, (48 * MiB) / 4096)
    assert.is(ready.fields['seed'], 7)
    const first = await guest.seen('audit')
    const second = await guest.seen('audit')
    assert.ok(second.pass > first.pass && second.writes > first.writes)
    guest.send('audit')
    const full = await guest.seen('audit-full')
    assert.equal([full.pages, full.bad, full.ever], [ready.pages, 0, 0])
    guest.send('dirty 0')
    await guest.seen('done', { where: ({ what }) => what === 'DIRTY' })
    guest.send('touch')
    const touched = await guest.seen('done', { where: ({ what }) => what === 'TOUCHED' })
    assert.is(touched.fields['pages'], ready.pages)
    guest.send('audit')
    const again = await guest.seen('audit-full')
    assert.equal([again.bad, again.versions], [0, touched.fields['writes']])
    guest.send('poweroff')
    assert.is(await guest.exited, 0)
    const { beats, missing, duplicates, badLines } = guest.witness.summary()
    assert.equal({ missing, duplicates, badLines }, { missing: 0, duplicates: 0, badLines: 0 })
    assert.ok(beats > 50)
  },
  { skip },
)

test(
  'rewrites may change a few values of a page, and it says how much it has done',
  async () => {
    await using guest = bootGuest({ fillBytes: 8 * MiB, dirtyBytesPerSecond: 32 * MiB, hotBytes: MiB / 2, patchBytes: 64, workMs: 100 })
    await guest.seen('ready', { past: true })
    const first = await guest.seen('work')
    const later = await guest.seen('work', { where: ({ writes }) => writes > first.writes + 5000 })
    assert.ok(later.audited > first.audited && later.guestMs > first.guestMs)
    guest.send('audit')
    assert.equal(await guest.seen('audit-full').then(({ bad, ever }) => [bad, ever]), [0, 0])
  },
  { skip },
)

test(
  'it writes to its disk all the time, finds what others change there, and its SHA-256 is that of the file',
  async () => {
    await using folder = await tempFolder()
    const file = join(folder.path, 'disk.raw')
    await writeFile(file, '')
    await truncate(file, 16 * MiB)
    const drive = ['-drive', `file=${file},format=raw,if=virtio`]
    const disk = { diskBytes: 4 * MiB, diskBytesPerSecond: 256 * 1024 }
    await using guest = bootGuest({ fillBytes: 4 * MiB, dirtyBytesPerSecond: MiB, workMs: 100, ...disk, qemuArguments: drive })
    await guest.seen('ready', { past: true })
    await guest.seen('wrote', { where: ({ us }) => us > 0 })
    guest.send('disk')
    const first = await guest.seen('audit-disk')
    assert.equal([first.blocks, first.bad], [1024, 0])
    assert.ok(first.writes > 0)
    guest.send('disk')
    const second = await guest.seen('audit-disk', { where: ({ writes }) => writes > first.writes })
    assert.is(second.bad, 0)
    // The guest may rewrite one of them meanwhile.
    await using handle = await open(file, 'r+')
    for (let block = 1000; block < 1010; block++) await handle.write(Buffer.from('altered by hand'), 0, 15, block * 4096 + 100)
    guest.send('sum')
    const altered = await guest.seen('audit-disk')
    assert.ok(altered.bad >= 5 && altered.bad <= 10, `${altered.bad} found`)
    const { sha256 } = await guest.seen('disk-sum')
    assert.is(
      sha256,
      createHash('sha256')
        .update(await readFile(file))
        .digest('hex'),
    )
    assert.match(guest.witness.summary().bad[0] ?? '', /^BAD disk block=100\d why=content/)
  },
  { skip },
)

test(
  'a flipped bit and a lost write in any kind of page are found by both audits',
  async () => {
    await using guest = bootGuest({ fillBytes: 8 * MiB, dirtyBytesPerSecond: 0, mix: [25, 25, 25, 25] })
    await guest.seen('ready', { past: true })
    // Consecutive pages: of sixteen, each kind is among them.
    for (let page = 0; page < 16; page++) guest.send(`corrupt ${page}`)
    await guest.seen('done', { where: ({ fields }) => fields['page'] === 15 })
    const audit = await guest.seen('audit', { where: ({ bad }) => bad >= 16 })
    assert.ok(audit.bad >= 16)
    guest.send('audit')
    assert.is((await guest.seen('audit-full')).bad, 16)
    // Rewritten, all are right again; then a random page keeps its old content under a new version.
    guest.send('touch')
    guest.send('audit')
    assert.is((await guest.seen('audit-full')).bad, 0)
    for (let page = 100; page < 116; page++) guest.send(`forget ${page}`)
    guest.send('audit')
    const lost = await guest.seen('audit-full')
    // A page that was zero, or the same duplicate, before and after cannot be told from a lost write.
    assert.ok(lost.bad > 4 && lost.bad <= 16, `${lost.bad} found`)
  },
  { skip },
)

test(
  'the power button of the machine powers it off',
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'godwit-guest-test-'))
    try {
      const monitor = join(folder, 'monitor')
      await using guest = bootGuest({ fillBytes: 4 * MiB, qemuArguments: ['-monitor', `unix:${monitor},server=on,wait=off`] })
      await guest.seen('ready', { past: true })
      const socket = connect(monitor).on('error', () => {})
      socket.write('system_powerdown\n')
      await guest.seen('done', { past: true, where: ({ what }) => what === 'POWEROFF' })
      assert.is(await guest.exited, 0)
      socket.destroy()
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  },
  { skip },
)

test(
  'moved by QEMU alone from one process to another, no beat is lost and every page is right',
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'godwit-guest-test-'))
    try {
      const path = (name: string) => join(folder, name)
      const monitor = (name: string) => ['-monitor', `unix:${path(name)},server=on,wait=off`]
      const options = { fillBytes: 48 * MiB, dirtyBytesPerSecond: 16 * MiB }
      await using source = bootGuest({ ...options, qemuArguments: monitor('source') })
      await source.seen('ready', { past: true })
      const witness = createWitness()
      const watch = (guest: typeof source, name: string) =>
        guest.qemu.stdout.on('data', (text: string) => void witness.push(name, text, performance.now()))
      watch(source, 'source')
      await using target = bootGuest({ ...options, qemuArguments: [...monitor('target'), '-incoming', `unix:${path('stream')}`] })
      watch(target, 'target')
      await eventually(() => existsSync(path('stream')) || undefined, { ms: 10_000, what: 'the target listens' })
      const socket = connect(path('source')).on('error', () => {})
      socket.write(`migrate -d unix:${path('stream')}\n`)
      await target.seen('audit', { ms: 60_000 })
      target.send('audit')
      const full = await target.seen('audit-full')
      socket.destroy()
      const { missing, duplicates, outOfOrder, badLines, longestSilenceMs, lastSequence } = witness.summary()
      assert.equal([full.bad, full.ever], [0, 0])
      assert.equal({ missing, duplicates, outOfOrder, badLines }, { missing: 0, duplicates: 0, outOfOrder: 0, badLines: 0 })
      console.log(`longest silence ${Math.round(longestSilenceMs)} ms, ${lastSequence} beats`)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  },
  { skip, ms: 120_000 },
)

test.run()
