"""Measures of similarity, transferability and attribution: arrays in, numbers out."""

from tl_lightning._lazy import lazy_exports

_EXPORTS = {
    "ChannelImages": "tl_lightning.analysis.feature_visualisation",
    "GradCAMMaps": "tl_lightning.analysis.attribution",
    "PointingGrids": "tl_lightning.analysis.faithfulness",
    "RoadScores": "tl_lightning.analysis.faithfulness",
    "SanityCheck": "tl_lightning.analysis.sanity_check",
    "channel_activations": "tl_lightning.analysis.feature_visualisation",
    "diagonal_frechet_distance": "tl_lightning.analysis.source_statistics",
    "estimate_batch_norm": "tl_lightning.analysis.randomisation",
    "frechet_distance": "tl_lightning.analysis.similarity",
    "gaussian_frechet_distance": "tl_lightning.analysis.similarity",
    "grad_cam": "tl_lightning.analysis.attribution",
    "guided_backprop": "tl_lightning.analysis.attribution",
    "h_score": "tl_lightning.analysis.transferability",
    "knn_accuracy": "tl_lightning.analysis.probes",
    "layerwise_cka": "tl_lightning.analysis.cka",
    "leep": "tl_lightning.analysis.transferability",
    "linear_cka": "tl_lightning.analysis.cka",
    "linear_probe_accuracy": "tl_lightning.analysis.probes",
    "logme": "tl_lightning.analysis.transferability",
    "minibatch_cka": "tl_lightning.analysis.cka",
    "nleep": "tl_lightning.analysis.transferability",
    "pointing_grids": "tl_lightning.analysis.faithfulness",
    "pointing_share": "tl_lightning.analysis.faithfulness",
    "proxy_a_distance": "tl_lightning.analysis.similarity",
    "randomisation_check": "tl_lightning.analysis.sanity_check",
    "rank_correlation": "tl_lightning.analysis.faithfulness",
    "regularised_h_score": "tl_lightning.analysis.transferability",
    "road": "tl_lightning.analysis.faithfulness",
    "stage_activations": "tl_lightning.analysis.stage_similarity",
    "stage_cka": "tl_lightning.analysis.stage_similarity",
    "source_distances": "tl_lightning.analysis.source_statistics",
    "untouched": "tl_lightning.analysis.untouched",
    "visualise_channels": "tl_lightning.analysis.feature_visualisation",
    "weight_drift": "tl_lightning.analysis.similarity",
    "weight_randomisation_cascade": "tl_lightning.analysis.randomisation",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
