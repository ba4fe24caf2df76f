// Shared disks: one folder that two nodes name as sharedDir. The disk stays where it is, and only the site that has the
// VM has it open for writing.
import { mkdir, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beginSoon } from '../support/disk-scene.ts'
import { labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/shared', { ms: 120_000 })
const skip = labMissing()
const DISK = { file: 'd.img', mode: 'shared', format: 'raw' }

/** `../shared` of a site's folder is the lab's: what both mount. */
const mounts = { config: (dir: string) => ({ sharedDir: join(dir, '..', 'shared') }) }

test(
  'a VM with a shared disk moves there and back; not to a site with other storage, nor when the name leads to another file by now',
  async () => {
    const other = { config: (dir: string) => ({ sharedDir: join(dir, '..', 'other') }) }
    await using lab = await openLab({ sites: [['a', mounts], ['b', mounts], ['c', other], 'd'] })
    const shared = join(lab.dir, 'shared')
    for (const dir of [shared, join(lab.dir, 'other')]) {
      await mkdir(dir)
      await writeFile(join(dir, 'd.img'), new Uint8Array(1024 * 1024))
    }
    using guest = await bootGuest(lab, 'a', { seed: 13, fillBytes: 8 * 1024 * 1024, spec: { disks: [DISK] } })
    const move = async (to: string) => await lab.until(await beginSoon(lab, { vm: guest.name, to }))
    const codeOfMove = async (to: string) => {
      const { error } = await move(to)
      await guest.observer.next('beat', 5_000)
      return `${error?.code} ${error?.message}`
    }
    assert.match(await codeOfMove('c'), /^PREFLIGHT_FILE_MISSING d\.img.*not the same storage/)
    assert.match(await codeOfMove('d'), /^PREFLIGHT_FILE_MISSING d\.img/)
    assert.is((await move('b')).outcome, 'completed', lab.logTail())
    assert.is((await move('a')).outcome, 'completed', lab.logTail())
    await guest.assertSound()
    await writeFile(join(shared, 't'), new Uint8Array(1024 * 1024))
    await rename(join(shared, 't'), join(shared, 'd.img'))
    assert.match(await codeOfMove('b'), /^PREFLIGHT_FILE_CHANGED d\.img/)
  },
  { skip },
)

test.run()
