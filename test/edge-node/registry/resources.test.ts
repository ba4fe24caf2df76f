import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Copies } from '../../../edge-node/disks/copies.ts'
import { Resources } from '../../../edge-node/registry/resources.ts'
import { vmHost } from '../../../edge-node/registry/vm-host.ts'
import { variablesPath } from '../../../edge-node/vm/argv.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { silentLog } from '../../../wire/log.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { echoSpec, testSite } from '../vm/echo-guest.ts'
import { noImages } from './no-images.ts'

const test = suite('edge-node/registry/resources')
const copiesOf = ({ stateDir }: { stateDir: string }) => new Copies({ dir: join(stateDir, 'copies'), log: silentLog })

test('what a VM has at this site is made when it is created or reserved, and is gone when it is removed', async () => {
  await using site = await testSite()
  const users = new Map<string, number>()
  const take = async (name: string) => {
    if (!users.has(name)) users.set(name, 900 + users.size)
    return users.get(name)!
  }
  const resources = new Resources({
    vmHost,
    stateDir: site.stateDir,
    users: { take, release: async name => void users.delete(name) },
    images: noImages,
    copies: copiesOf(site),
  })
  const spec = parseSpec(echoSpec('vm-1'))
  await resources.create(spec)
  await resources.reserve(parseSpec(echoSpec('vm-2')), false)
  assert.equal((await resources.names()).sort(), ['vm-1', 'vm-2'])
  assert.equal(await resources.specOf('vm-1'), spec)
  assert.equal(await resources.userOf('vm-1', 'tcg'), { uid: 900, gid: 900 })
  assert.equal(await resources.userOf('vm-1', 'tcg'), { uid: 900, gid: 900 })
  for (const name of await resources.names()) {
    await resources.endQemu(name)
    await resources.remove(name)
    await resources.remove(name)
  }
  assert.equal(await resources.names(), [])
  assert.is(users.size, 0)
  assert.ok(existsSync(join(site.imagesDir, 'echo.img')), 'an image is not the VM’s own')
})

test('a folder with the spec of another VM is refused, and QEMUs run as the agent where there are no users', async () => {
  await using site = await testSite()
  const resources = new Resources({ vmHost, stateDir: site.stateDir, users: undefined, images: noImages, copies: copiesOf(site) })
  await resources.create(parseSpec(echoSpec('vm-1')))
  await writeFile(join(resources.folder('vm-1'), 'spec.yaml'), echoSpec('vm-2'))
  assert.is(await codeOf(() => resources.specOf('vm-1')), 'CONFIG_INVALID')
  await rm(join(resources.folder('vm-1'), 'spec.yaml'))
  assert.ok(await codeOf(() => resources.specOf('vm-1')))
  assert.is(await resources.userOf('vm-1', 'tcg'), undefined)
})

test(
  "a VM that is created has its seed and its firmware's variables; one that comes has zeros there",
  async () => {
    await using site = await testSite()
    const resources = new Resources({ vmHost, stateDir: site.stateDir, users: undefined, images: noImages, copies: copiesOf(site) })
    const more = 'cloudInit: {userData: hello}\nfirmware: uefi\n'
    const disk = 'disks: [{mode: local, size: 1MiB, format: raw}]\n'
    const spec = (name: string) => parseSpec(`name: ${name}\nmemory: 64MiB\n${disk}${more}`)
    await resources.create(spec('vm-1'))
    await resources.reserve(spec('vm-2'), true)
    const disksOf = (name: string) => Promise.all(['1', '2'].map(at => readFile(join(resources.folder(name), 'disks', `${at}.raw`))))
    const [seed, variables] = await disksOf('vm-1')
    assert.ok(seed!.includes('hello'))
    assert.ok(variables!.equals(await readFile(variablesPath)))
    const [blankSeed, blankVariables] = await disksOf('vm-2')
    assert.ok(blankSeed!.equals(Buffer.alloc(seed!.length)))
    assert.ok(blankVariables!.equals(Buffer.alloc(variables!.length)))
  },
  {
    skip:
      (!existsSync(variablesPath) && 'ovmf is not installed') ||
      (spawnSync('xorriso', ['--version']).status !== 0 && 'xorriso is not installed'),
  },
)

test.run()
