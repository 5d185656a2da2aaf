"""The classes and functions that a model file may name.

The names are written out: a namespace of Keras also holds classes that run code or read files, and
a next version may add some. Modules are those under which the two generations of Keras save them.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["allow_class", "allow_function", "allow_name", "is_from_keras"]

_LAYERS = """
    AbstractRNNCell Activation ActivityRegularization AdaptiveAveragePooling1D
    AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D
    AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention AugMix AutoContrast
    Average AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D
    BatchNormalization Bidirectional CategoryEncoding CenterCrop Concatenate
    ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose
    Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D
    Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D
    DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten
    GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D
    GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization GroupQueryAttention HashedCrossing Hashing Identity InputLayer
    IntegerLookup LSTM LSTMCell Layer LayerNormalization LeakyReLU LocallyConnected1D
    LocallyConnected2D Masking MaxNumBoundingBoxes MaxPool1D MaxPool2D MaxPool3D MaxPooling1D
    MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp MultiHeadAttention Multiply
    Normalization PReLU Permute Pipeline RMSNormalization RNN RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform
    RandomErasing RandomFlip RandomFourierFeatures RandomGaussianBlur RandomGrayscale
    RandomHeight RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom ReLU
    RepeatVector Rescaling Reshape Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D
    SeparableConv2D SeparableConvolution1D SeparableConvolution2D SimpleRNN SimpleRNNCell
    Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpectralNormalization StackedRNNCells StringLookup Subtract TextVectorization
    ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D
    Wrapper ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
# Found by the name of their class alone in .h5 files and SavedModels of Keras 2: former names, and
# the layers that a graph is made of. What the last ones call is checked by itself.
_OTHER_LAYERS_2 = """
    AddLoss AddMetric BaseRandomLayer BatchNormalizationV1 BatchNormalizationV2 CuDNNGRU CuDNNLSTM
    DeviceWrapper DropoutWrapper Functional GRUCellV1 GRUCellV2 GRUV1 GRUV2 InputSpec LSTMCellV1
    LSTMCellV2 LSTMV1 LSTMV2 Model ResidualWrapper Sequential SyncBatchNormalization
    ClassMethod InstanceMethod InstanceProperty SlicingOpLambda TFOpLambda
"""
_INITIALIZERS = """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT
    STFTInitializer TruncatedNormal VarianceScaling Zeros
"""
_REGULARIZERS = "L1 L1L2 L2 OrthogonalRegularizer"
_CONSTRAINTS = "MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm"
_ACTIVATIONS = """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu
    linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softmax_v2
    softplus softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink
    threshold
"""
_LOSSES = """
    BinaryCrossentropy BinaryFocalCrossentropy CTC CategoricalCrossentropy
    CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy CategoricalHinge Circle
    CosineSimilarity Dice Hinge Huber KLDivergence LogCosh MeanAbsoluteError
    MeanAbsolutePercentageError MeanSquaredError
    MeanSquaredLogarithmicError Poisson SparseCategoricalCrossentropy SquaredHinge Tversky
"""
_LOSS_FUNCTIONS = """
    KLD MAE MAPE MSE MSLE binary_crossentropy binary_focal_crossentropy categorical_crossentropy
    categorical_focal_crossentropy categorical_generalized_cross_entropy categorical_hinge circle
    cosine_similarity ctc dice hinge huber kl_divergence kld kullback_leibler_divergence log_cosh
    logcosh mae mape mean_absolute_error mean_absolute_percentage_error mean_squared_error
    mean_squared_logarithmic_error mse msle poisson sparse_categorical_crossentropy squared_hinge
    tversky
"""
_METRICS = """
    AUC Accuracy BinaryAccuracy BinaryCrossentropy BinaryIoU CategoricalAccuracy
    CategoricalCrossentropy CategoricalHinge ConcordanceCorrelation CosineSimilarity F1Score
    FBetaScore FalseNegatives FalsePositives Hinge IoU KLDivergence LogCoshError Mean
    MeanAbsoluteError MeanAbsolutePercentageError MeanIoU MeanMetricWrapper MeanRelativeError
    MeanSquaredError MeanSquaredLogarithmicError MeanTensor OneHotIoU OneHotMeanIoU
    PearsonCorrelation Poisson Precision PrecisionAtRecall R2Score Recall RecallAtPrecision
    RootMeanSquaredError SensitivityAtSpecificity SparseCategoricalAccuracy
    SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy SpecificityAtSensitivity
    SquaredHinge Sum TopKCategoricalAccuracy TrueNegatives TruePositives
"""
_METRIC_FUNCTIONS = """
    acc accuracy binary_accuracy categorical_accuracy ce concordance_correlation crossentropy
    pearson_correlation sparse_categorical_accuracy sparse_top_k_categorical_accuracy
    top_k_categorical_accuracy
"""
_OPTIMIZERS = """
    Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer MultiOptimizer
    Muon Nadam RMSprop SGD ScheduleFreeAdamW
"""
_SCHEDULES = """
    CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay
    PolynomialDecay
"""
_POLICIES = """
    DTypePolicy DTypePolicyMap DynamicLossScale FixedLossScale FloatDTypePolicy LossScaleOptimizer
    Policy PolicyV1 QuantizedDTypePolicy QuantizedFloat8DTypePolicy
"""
# Of the TensorFlow Model Optimization toolkit, by module.
_TFMOT = {
    "quantization.keras.quantize_wrapper": "QuantizeWrapper QuantizeWrapperV2",
    "quantization.keras.quantize_layer": "QuantizeLayer",
    "quantization.keras.quantize_annotate": "QuantizeAnnotate",
    "quantization.keras.quantize_aware_activation": "NoOpActivation QuantizeAwareActivation",
    "quantization.keras.quantize_config": "FixedQuantizeConfig OutputOnlyConfig",
    "quantization.keras.quantizers": """
        AllValuesQuantizer FixedQuantizer LastValueQuantizer MovingAverageQuantizer NoQuantizer
    """,
    "quantization.keras.default_8bit.default_8bit_quantizers": "Default8BitConvWeightsQuantizer",
    "quantization.keras.default_8bit.default_8bit_quantize_configs": """
        Default8BitOutputQuantizeConfig NoOpQuantizeConfig
    """,
    "quantization.keras.default_8bit.default_8bit_quantize_registry": """
        Default8BitActivationQuantizeConfig Default8BitConvQuantizeConfig
        Default8BitConvTransposeQuantizeConfig Default8BitQuantizeConfig
        Default8BitQuantizeConfigRNN
    """,
    "quantization.keras.experimental.default_n_bit.default_n_bit_quantize_configs": """
        DefaultNBitOutputQuantizeConfig NoOpQuantizeConfig
    """,
    "quantization.keras.experimental.default_n_bit.default_n_bit_quantize_registry": """
        DefaultNBitActivationQuantizeConfig DefaultNBitConvQuantizeConfig
        DefaultNBitConvTransposeQuantizeConfig DefaultNBitQuantizeConfig
        DefaultNBitQuantizeConfigRNN
    """,
    "sparsity.keras.pruning_wrapper": "PruneLowMagnitude",
    "sparsity.keras.pruning_schedule": "ConstantSparsity PolynomialDecay",
    "clustering.keras.cluster_wrapper": "ClusterWeights",
}
# Models, and classes that are in no public module.
_ELSEWHERE = {
    2: """
        keras.Model keras.Sequential keras.models.Model keras.models.Sequential
        keras.src.engine.base_layer.AddLoss keras.src.engine.base_layer.AddMetric
        keras.src.engine.functional.Functional
        keras.src.layers.core.tf_op_layer.ClassMethod
        keras.src.layers.core.tf_op_layer.InstanceMethod
        keras.src.layers.core.tf_op_layer.InstanceProperty
        keras.src.layers.core.tf_op_layer.SlicingOpLambda
        keras.src.layers.core.tf_op_layer.TFOpLambda
        keras.src.applications.convnext.LayerScale keras.src.applications.convnext.StochasticDepth
        keras.src.applications.inception_resnet_v2.CustomScaleLayer
    """,
    3: """
        keras.Model keras.Sequential keras.models.Model keras.models.Sequential
        keras.src.models.functional.Functional keras.src.models.sequential.Sequential
        keras.src.applications.convnext.LayerScale keras.src.applications.convnext.StochasticDepth
        keras.src.applications.inception_resnet_v2.CustomScaleLayer
        keras.random.SeedGenerator keras.src.random.seed_generator.SeedGenerator
        keras.quantizers.AbsMaxQuantizer keras.quantizers.Float8QuantizationConfig
        keras.quantizers.Int4QuantizationConfig keras.quantizers.Int8QuantizationConfig
    """,
}
# Where files say that each kind is; the class's own module is allowed too.
_MODULES = {
    "layers": (
        "keras.layers",
        "keras.layers.experimental",
        "keras.layers.experimental.preprocessing",
    ),
    "initializers": ("keras.initializers",),
    "regularizers": ("keras.regularizers",),
    "constraints": ("keras.constraints",),
    "losses": ("keras.losses",),
    "metrics": ("keras.metrics",),
    "optimizers": ("keras.optimizers", "keras.optimizers.legacy", "keras.optimizers.experimental"),
    "optimizers.schedules": ("keras.optimizers.schedules",),
    "mixed_precision": ("keras", "keras.dtype_policies", "keras.mixed_precision"),
}
_TEXTS = {
    "activations": _ACTIVATIONS,
    "constraints": f"""
        {_CONSTRAINTS} max_norm maxnorm min_max_norm non_neg nonneg radial_constraint unit_norm
        unitnorm
    """,
    "initializers": f"""
        {_INITIALIZERS} constant glorot_normal glorot_uniform he_normal he_uniform identity
        lecun_normal lecun_uniform normal one ones orthogonal random_normal random_uniform stft
        truncated_normal uniform variance_scaling zero zeros
    """,
    "losses": f"{_LOSSES} {_LOSS_FUNCTIONS}",
    "metrics": f"{_METRICS} {_METRIC_FUNCTIONS} {_LOSS_FUNCTIONS}",
    "optimizers": f"{_OPTIMIZERS} {_OPTIMIZERS.lower()}",
    "regularizers": f"{_REGULARIZERS} l1 l1_l2 l2 orthogonal_regularizer",
}
_CLASSES = {
    "layers": _LAYERS,
    "initializers": _INITIALIZERS,
    "regularizers": _REGULARIZERS,
    "constraints": _CONSTRAINTS,
    "losses": _LOSSES,
    "metrics": _METRICS,
    "optimizers": _OPTIMIZERS,
    "optimizers.schedules": _SCHEDULES,
    "mixed_precision": _POLICIES,
}
# What activations, losses and metrics are called where a file names the function itself.
_FUNCTION_MODULES = ("builtins", "keras.activations", "keras.losses", "keras.metrics", "keras.ops")
_KERAS_ROOTS = ("keras", "tf_keras", "tensorflow_model_optimization")


def allow_class(module: Any, name: str, generation: int) -> bool:
    """Says whether a file may name a class.

    Args:
        module: The module that the file gives for it, if any.
        name: The name of the class.
        generation: The Keras that wrote the file, 2 or 3.
    """
    if not module:
        return name in _list_bare_names()
    return isinstance(module, str) and (module, name) in _list_pairs(generation)


def allow_function(module: Any, name: str, generation: int) -> bool:
    """Says whether a file may name a function: an activation, a loss or a metric of Keras."""
    known = any(allow_name(kind, name, generation) for kind in ("activations", "losses", "metrics"))
    return known and name.islower() and (not module or _to_keras(module) in _FUNCTION_MODULES)


def allow_name(kind: str, name: str, generation: int) -> bool:
    """Says whether a file may name an object of a kind ("activations") without a class."""
    del generation  # both know most of them, and none does harm in the other
    return name in _list_texts(kind)


def is_from_keras(module: Any) -> bool:
    """Says whether a module is part of Keras, or of the optimization toolkit."""
    return str(module).split(".")[0] in _KERAS_ROOTS


def _to_keras(module: Any) -> str:
    """Returns a module as Keras 2 itself writes it; tf_keras is its name as a package."""
    return str(module).removeprefix("tf_") if str(module).startswith("tf_keras") else str(module)


@functools.cache
def _list_texts(kind: str) -> frozenset[str]:
    return frozenset(_TEXTS[kind].split())


@functools.cache
def _list_bare_names() -> frozenset[str]:
    names = " ".join([*_CLASSES.values(), *_TFMOT.values(), _OTHER_LAYERS_2]).split()
    names += [name for kind in _TEXTS for name in _list_texts(kind)]
    # As TensorFlow 2 wrote the initializers that differ from those of TensorFlow 1.
    names += [f"{name}V2" for name in _INITIALIZERS.split()]
    return frozenset(names)


@functools.cache
def _list_pairs(generation: int) -> frozenset[tuple[str, str]]:
    pairs = {
        (f"tensorflow_model_optimization.python.core.{module}", name)
        for module, names in _TFMOT.items()
        for name in names.split()
    }
    pairs |= {
        (module, name)
        for kind, names in _CLASSES.items()
        for name in names.split()
        for module in (*_MODULES[kind], *_find_modules(generation, kind, name))
    }
    for full in _ELSEWHERE[generation].split():
        module, _, name = full.rpartition(".")
        pairs.add((module, name))
    if generation == 3:
        from kdtflite.models.keras3.saved_operations import list_saved_operations

        pairs |= set(list_saved_operations())
    # Both spellings: files of tf_keras say "keras" or "tf_keras", by version.
    spelled = {(f"tf_{module}", name) for module, name in pairs if module.startswith("keras")}
    return frozenset(pairs | spelled)


def _find_modules(generation: int, kind: str, name: str) -> list[str]:
    """Returns the module in which a public class of Keras is written, if the version has it."""
    if generation == 3:
        import keras
    else:
        import tf_keras as keras
    place: Any = keras
    for part in kind.split("."):
        place = getattr(place, part, None)
    found = getattr(place, name, None)
    return [_to_keras(found.__module__)] if isinstance(found, type) else []
