// The files of a VM that moves: what its QEMU has open counts, whatever bears the name by now; a sparse file is read as
// fast as its data.
import { randomBytes } from 'node:crypto'
import { readFile, rename, utimes, writeFile } from 'node:fs/promises'
import { eventually } from '../../ops/deadline.ts'
import { DISK_TIME, type DiskScene, openDiskScene } from '../support/disk-scene.ts'
import { labMissing } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/files', { ms: 120_000 })
const skip = labMissing()

/** `cp v2.img t && mv t d.img` */
async function replace(path: string, content: Uint8Array): Promise<void> {
  await writeFile(`${path}.t`, content)
  await rename(`${path}.t`, path)
}

async function assertRefused({ lab, guest, begin }: DiskScene, to: string, code: string, file: string): Promise<void> {
  const { outcome, error } = await lab.until(await begin(to))
  assert.equal([outcome, error?.code], ['failed', code], lab.logTail())
  assert.match(error!.message, file)
  assert.equal(await guest.runsAt(), [to === 'a' ? 'b' : 'a'])
  await eventually(() => (lab.site(to).node.registry.list().length === 0 ? true : undefined), { ms: 30_000, what: `nothing left at ${to}` })
  await guest.observer.next('beat', 5_000)
}

test(
  'files that were replaced, or written to in place, at both sites while the VM runs are refused, also by an agent that found the VM',
  async () => {
    await using scene = await openDiskScene()
    const { lab, guest, image, begin } = scene
    const sites = ['a', 'b']
    const kernel = await readFile(image('a', 'vmlinuz'))
    for (const site of sites) await replace(image(site, 'vmlinuz'), Buffer.concat([kernel, Buffer.from('another one')]))
    await assertRefused(scene, 'b', 'PREFLIGHT_FILE_MISSING', 'vmlinuz')
    await replace(image('b', 'vmlinuz'), kernel)
    const disk = await readFile(image('a'))
    const other = randomBytes(disk.length)
    for (const site of sites) await replace(image(site), other)
    await assertRefused(scene, 'b', 'PREFLIGHT_FILE_MISSING', 'd.img')
    await lab.site('a').stop()
    await lab.site('a').start()
    await guest.watchAnew()
    await assertRefused(scene, 'b', 'PREFLIGHT_FILE_MISSING', 'd.img')
    // What the target has is what the VM has open: the name at the source leads to something else, and does not count.
    await replace(image('b'), disk)
    await utimes(image('b'), DISK_TIME, DISK_TIME)
    assert.is((await lab.until(await begin('b'))).outcome, 'completed', lab.logTail())
    // In place, with the old time set again: the content is known to have been another one.
    await replace(image('a', 'vmlinuz'), kernel)
    for (const site of sites) {
      await writeFile(image(site), other)
      await utimes(image(site), DISK_TIME, DISK_TIME)
    }
    await assertRefused(scene, 'a', 'PREFLIGHT_FILE_CHANGED', 'd.img')
    for (const site of sites) await writeFile(image(site), other)
    await assertRefused(scene, 'a', 'PREFLIGHT_FILE_CHANGED', 'd.img')
    // What it said while its agent was away was heard by nobody, so its beats cannot be counted here.
    assert.is((await guest.audit()).bad, 0)
  },
  { skip },
)

test(
  'a disk that is written to during the migration, at the target or at the source, ends it with the VM at its source',
  async () => {
    await using scene = await openDiskScene()
    const { lab, guest, image, begin } = scene
    const disk = await readFile(image('a'))
    for (const site of ['b', 'a']) {
      const id = await begin('b')
      await eventually(() => (lab.site('b').node.registry.list()[0]?.pid === undefined ? undefined : true), {
        ...{ ms: 30_000, everyMs: 2, what: 'a QEMU that waits at b' },
      })
      await writeFile(image(site), randomBytes(disk.length))
      const { outcome, error } = await lab.until(id)
      assert.equal([outcome, error?.code], ['failed', 'PREFLIGHT_FILE_CHANGED'], lab.logTail())
      assert.match(error!.message, 'd.img')
      assert.equal(await guest.runsAt(), ['a'])
      await eventually(() => (lab.site('b').node.registry.list().length === 0 ? true : undefined), {
        ms: 30_000,
        what: 'nothing left at b',
      })
      await writeFile(image(site), disk)
    }
    await guest.assertSound()
  },
  { skip },
)

test(
  'a VM with a sparse disk of 300 GB moves as fast as with a small one',
  async () => {
    await using scene = await openDiskScene({}, 300e9)
    const { lab, guest } = scene
    const { outcome, report } = await lab.migrate({ vm: guest.name, to: 'b' })
    assert.is(outcome, 'completed', lab.logTail())
    assert.ok(report!.totalMs < 60_000)
    await guest.assertSound()
  },
  { skip },
)

test.run()
