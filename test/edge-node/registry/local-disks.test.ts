// Local disks: made with the VM, opened by its QEMU over the image that the node names, gone with the VM.

import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { open as openFile, readdir, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseSpec, specToYaml } from '../../../edge-node/vm/spec.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { echoDisk, heard, testSite } from '../vm/echo-guest.ts'
import { open, skip as qemuMissing } from './open-registry.ts'

const test = suite('edge-node/registry/local-disks', { ms: 60_000 })
const skip = qemuMissing || (spawnSync('qemu-img', ['--version']).status !== 0 && 'qemu-utils is not installed')

const spec = (disks: string) => `name: vm-1\nmemory: 32MiB\naccelerator: tcg\ndisks:\n${disks}`
const BOTH =
  '  - {mode: local, image: echo}\n  - {mode: local, size: 8MiB, format: raw}\n  - {mode: local, image: echo, size: 4MiB, format: raw}\n'

test(
  'a VM boots from a local disk over an image, beside a blank one and a copy; nothing is written to the image',
  async () => {
    await using site = await testSite()
    await using registry = await open(site)
    await registry.images.import({ name: 'echo', from: join(site.imagesDir, 'echo.img'), format: 'raw' })
    await registry.create(spec(BOTH))
    // The size of the image is written out: another site must not take its own.
    assert.match(specToYaml(registry.spec('vm-1')), /size: 1MiB/)
    const dir = join(site.stateDir, 'vms/vm-1/disks')
    assert.equal((await readdir(dir)).sort(), ['0.qcow2', '1.raw', '2.raw'])
    const sizes = await Promise.all(['1.raw', '2.raw'].map(async name => (await stat(join(dir, name))).size))
    assert.equal(sizes, [8 * MIB, 4 * MIB])
    assert.is((await stat(join(dir, '0.qcow2'))).mode & 0o777, 0o600)
    const { root } = await registry.images.show('echo')
    await registry.start('vm-1')
    await heard(registry.console('vm-1').follow(), 'G')
    const nodes = await registry.machine('vm-1').qmp.execute<Record<string, unknown>[]>('query-named-block-nodes', { flat: true })
    const names = nodes
      .map(node => node['node-name'])
      .filter(name => !String(name).startsWith('#'))
      .sort()
    assert.equal(names, ['base0', 'disk0', 'disk1', 'disk2', 'file0', 'file1', 'file2', 'image0'])
    assert.is(await codeOf(() => registry.images.remove('echo')), 'IMAGE_IN_USE')
    assert.is(await codeOf(() => registry.needs('vm-1', 'live').then(needs => registry.checkIncoming(needs))), 'VM_EXISTS')
    await registry.stop('vm-1', { force: true })
    assert.is((await registry.images.use('echo')).root, root)
    await registry.delete('vm-1')
    assert.is(existsSync(join(site.stateDir, 'vms/vm-1')), false)
    await registry.images.remove('echo')
  },
  { skip },
)

test(
  'what cannot be made is refused and leaves nothing: no image, a changed one, a disk smaller than its image',
  async () => {
    await using site = await testSite()
    await using registry = await open(site)
    const codes = async (text: string) => await codeOf(() => registry.create(spec(text)))
    assert.is(await codes('  - {mode: local, image: echo}\n'), 'IMAGE_UNKNOWN')
    // A file of the images folder is no image until it is imported.
    assert.is(await codes('  - {mode: local, image: echo.img}\n'), 'IMAGE_UNKNOWN')
    await writeFile(join(site.dir, 'big'), Buffer.concat([echoDisk(), echoDisk()]))
    await registry.images.import({ name: 'big', from: join(site.dir, 'big'), format: 'raw' })
    assert.is(await codes('  - {mode: local, image: big, size: 1MiB}\n'), 'VM_SPEC_INVALID')
    execFileSync('chmod', ['+w', join(site.imagesDir, 'big')])
    await using file = await openFile(join(site.imagesDir, 'big'), 'r+')
    await file.write(Buffer.from('x'), 0, 1, 600)
    assert.is(await codes('  - {mode: local, image: big}\n'), 'IMAGE_CHANGED')
    assert.equal(registry.list(), [])
    assert.equal(await readdir(join(site.stateDir, 'vms')), [])
    // A disk that cannot be made after others were: all of it goes.
    assert.is(await codes('  - {mode: local, size: 1MiB}\n  - {mode: local, image: nothing, size: 2MiB}\n'), 'IMAGE_UNKNOWN')
    assert.equal(await readdir(join(site.stateDir, 'vms')), [])
  },
  { skip },
)

test('a specification names what is wrong with a local disk', async () => {
  const cases: [string, RegExp][] = [
    ['{mode: local}', /needs an image, a size, or both/],
    ['{mode: local, size: 20}', /disks\[0\]\.size.*20GiB/],
    ['{mode: local, size: 1500KiB}', /whole number of MiB/],
    ['{mode: local, size: 9TiB}', /up to 8TiB/],
    ['{mode: local, image: ../x}', /disks\[0\]\.image.*file name/],
    ['{mode: local, size: 1GiB, file: x}', /disks\[0\]\.file.*unknown field; allowed are/],
    ['{mode: locale, size: 1GiB}', /must be one of local, readonly, ephemeral, shared, writable/],
  ]
  for (const [disk, expected] of cases) {
    try {
      parseSpec(spec(`  - ${disk}\n`))
      assert.unreachable(disk)
    } catch (error) {
      assert.match(String(error), expected, disk)
    }
  }
  const good = parseSpec(spec('  - {mode: local, image: debian-12, size: 20GiB}\n'))
  assert.equal(parseSpec(specToYaml(good)), good)
})

test.run()
