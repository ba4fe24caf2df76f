// The version of a plan: the highest that both sites and this gateway support. Enters: what the sites have announced.
// Leaves: a version, or VERSION_UNSUPPORTED, which names both ranges.
import { commonVersion, FIRST_RANGE, VERSIONS, type Versions } from '../../wire/versions.ts'
import type { Sites } from '../sites/sites.ts'

type VersionFacts = { sites: Pick<Sites, 'state'>; versions?: Versions | undefined }

export function planVersion({ sites, versions = VERSIONS }: VersionFacts, source: string, target: string): number {
  const party = (site: string) => ({ name: `site ${site}`, range: sites.state(site)?.migrationVersions ?? FIRST_RANGE })
  return commonVersion('migration', [party(source), party(target), { name: 'the gateway', range: versions.migration }])
}
