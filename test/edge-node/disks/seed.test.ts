// The seed of cloud-init: made by xorriso, the same bytes for the same texts, and nothing beside it.
import { spawnSync } from 'node:child_process'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { makeSeed, SEED_BYTES } from '../../../edge-node/disks/seed.ts'
import { nowSeconds } from '../../../ops/clock.ts'
import { eventually } from '../../../ops/deadline.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/disks/seed')
const skip = spawnSync('xorriso', ['--version']).status !== 0 && 'xorriso is not installed'
const FILES = { 'user-data': '#cloud-config\nruncmd: [a]\n', 'meta-data': 'instance-id: 1\n', 'network-config': 'version: 2\n' }

test(
  'a seed has its label, its names and its texts; the same texts give the same bytes',
  async () => {
    await using folder = await tempFolder()
    const [first, second] = [join(folder.path, 'a', '0.raw'), join(folder.path, 'b', '0.raw')]
    await makeSeed(first, FILES)
    // The file systems of the two would have other times.
    const madeAt = nowSeconds()
    await eventually(() => (nowSeconds() > madeAt ? true : undefined), { ms: 5_000, what: 'the next second' })
    await makeSeed(second, FILES)
    const bytes = await readFile(first)
    assert.is(bytes.length, SEED_BYTES)
    assert.ok(bytes.equals(await readFile(second)))
    assert.is(bytes.toString('latin1', 32_808, 32_814), 'cidata')
    const found = spawnSync('xorriso', ['-no_rc', '-indev', first, '-find', '/', '-type', 'f'], { encoding: 'utf8' }).stdout
    assert.equal(
      found.trim().split('\n').sort(),
      Object.keys(FILES)
        .map(name => `'/${name}'`)
        .sort(),
    )
    for (const text of Object.values(FILES)) assert.ok(bytes.includes(text))
    assert.equal(await readdir(join(folder.path, 'a')), ['0.raw'], 'no text stays beside it')
  },
  { skip },
)

test(
  'an existing file is not touched',
  async () => {
    await using folder = await tempFolder()
    const path = join(folder.path, '0.raw')
    await writeFile(path, 'mine')
    assert.is(await codeOf(() => makeSeed(path, FILES)), 'CONFIG_UNREADABLE')
    assert.is(await readFile(path, 'utf8'), 'mine')
    assert.equal(await readdir(folder.path), ['0.raw'])
  },
  { skip },
)

test.run()
