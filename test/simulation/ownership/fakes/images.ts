// edge-node/disks/images.ts in the simulation: no images.
export const openImages = async () => ({ list: async () => [] })
